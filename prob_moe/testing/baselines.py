"""One call that tells whether a baseline leaves a gradient unbiased."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prob_moe.estimators.baselines import Baseline

_BATCH, _PARTICLES = (2,), 3


@dataclass(frozen=True)
class _Step:
    cost: Tensor
    weight: Tensor
    present: Tensor


def check_baseline(baseline: Baseline, *, num_datapoints: int = 4, batch: tuple[int, ...] = _BATCH) -> list[str]:
    """
    Hold a baseline to its rule: the baseline of a particle does not change when the cost or the assignment of *any*
    datapoint of that particle changes. It may know earlier steps, other particles, x, and earlier layers.

    Checked on the shapes of both objectives, (particles, *batch, n) and (particles, *batch), with padding, at the first
    step and after two others: the rule; that the value is finite, has no gradient, fits the cost, and does not change
    what it says when it is asked twice; that a ``state_dict`` carries all that later steps need; that one particle is
    enough where it says so. The baseline itself is left alone: copies of it are tried.

    :param baseline: the object, as a site would ask for it; one that predicts from x, from x of these shapes.
    :param num_datapoints: n.
    :param batch: batch shape.
    :returns: the names of the objectives whose costs it takes; one that it refuses by a ValueError is left out.
    :raises AssertionError: naming what is wrong, with the objective, the step and the numbers.
    :raises ValueError: if it refuses both objectives.

    >>> from prob_moe.estimators import LeaveOneOut
    >>> check_baseline(LeaveOneOut())
    ['router', 'balanced']

    The mean over the other datapoints of the same particle is biased: a balanced procedure tells them where this
    one went.

    >>> class OthersOfTheParticle(LeaveOneOut):
    ...     def value(self, cost, weight, present):
    ...         total = (weight * cost).sum(-1, keepdim=True)
    ...         return (total - weight * cost) / (cost.shape[-1] - 1), cost.new_zeros(())
    >>> check_baseline(OthersOfTheParticle())
    Traceback (most recent call last):
    AssertionError: OthersOfTheParticle breaks the rule of baselines in the router objective, step 1: ...
    """
    accepted, refused = [], []
    for objective in ("router", "balanced"):
        steps = _steps(objective, num_datapoints, batch)
        try:
            copy.deepcopy(baseline).value(steps[0].cost, steps[0].weight, steps[0].present)
        except ValueError as error:
            refused.append(f"{objective}: {error}")
            continue
        _check(baseline, objective, steps)
        accepted.append(objective)
    if not accepted:
        raise ValueError(f"baseline {type(baseline).__name__} refuses the costs of both objectives: {refused}")
    return accepted


def _check(baseline: Baseline, objective: str, steps: list[_Step]) -> None:
    name = type(baseline).__name__
    baseline = copy.deepcopy(baseline)
    for number, step in enumerate(steps, start=1):
        where = f"{name} {{}} in the {objective} objective, step {number}: "
        value = _value(baseline, step, where)
        asked_again = _value(baseline, step, where)
        _require(torch.equal(value, asked_again), where.format("changes when asked twice"))
        for particle, changed in _changes(step):
            other = _value(copy.deepcopy(baseline), changed, where)
            difference = float((other - value)[particle].abs().max())
            # A sum over the others, taken as all minus the own, moves by rounding.
            _require(
                difference <= 1e-6 * (1 + float(value.abs().max())),
                where.format("breaks the rule of baselines")
                + f"the baseline of particle {particle} moves by {difference:.3g} when the cost or the assignment of a "
                "datapoint of that particle changes; it may know earlier steps, other particles and x",
            )
        if not baseline.needs_particles:
            _value(copy.deepcopy(baseline), _Step(step.cost[:1], step.weight[:1], step.present[:1]), where)
        baseline.update(step.cost, step.weight, step.present)
        again = copy.deepcopy(baseline)
        again.load_state_dict(baseline.state_dict())
        same = torch.equal(_value(again, step, where), _value(baseline, step, where))
        _require(same, where.format("forgets by its state_dict"))


def _value(baseline: Baseline, step: _Step, where: str) -> Tensor:
    value, loss = baseline.value(step.cost, step.weight, step.present)
    _require(not value.requires_grad, where.format("gives a value with gradient") + "detach it")
    _require(loss.dim() == 0, where.format("gives a loss that is no scalar") + f"its shape is {tuple(loss.shape)}")
    try:
        value = value.expand(step.cost.shape)
    except RuntimeError:
        raise AssertionError(
            where.format("gives a value of the wrong shape")
            + f"{tuple(value.shape)} does not broadcast to the cost's {tuple(step.cost.shape)}"
        ) from None
    _require(bool(value.isfinite().all() and loss.isfinite()), where.format("is not finite"))
    return value.clone()


def _require(fulfilled: bool, message: str) -> None:
    if not fulfilled:
        raise AssertionError(message)


def _steps(objective: str, n: int, batch: tuple[int, ...]) -> list[_Step]:
    """Three steps, as numbers; the last datapoint of the last batch element is padding where there are several."""
    shape = (_PARTICLES, *batch, n)
    present = torch.ones(shape, dtype=torch.bool)
    if n > 1:
        present.view(_PARTICLES, -1, n)[:, -1, -1] = False
    size = present.numel()
    steps = []
    for number in range(3):
        numbers = (torch.arange(1, size + 1, dtype=torch.float64) * (1 + 2**0.5 * (number + 1))) % 1
        cost = torch.where(present, -5 * numbers.view(shape) - 1, 0.0)
        weight = torch.where(present, 0.5 + (3 * numbers.view(shape)) % 1, 0.0)
        if objective == "balanced":
            cost = cost.sum(-1)
            weight = torch.ones_like(cost)
        steps.append(_Step(cost, weight, present))
    return steps


def _changes(step: _Step) -> Iterator[tuple[int, _Step]]:
    """The step with another cost of one entry, and, in the router objective, as if it went elsewhere, by particle."""
    counted = step.present if step.cost.dim() == step.present.dim() else step.present.any(-1)
    for index in counted.nonzero().tolist():
        at = tuple(index)
        cost = step.cost.clone()
        cost[at] -= 7.0
        yield at[0], _Step(cost, step.weight, step.present)
        if step.cost.dim() == step.present.dim():
            for factor in (0.0, 2.0):  # dropped, or at an expert with another weight
                weight = step.weight.clone()
                weight[at] *= factor
                yield at[0], _Step(step.cost, weight, step.present)
