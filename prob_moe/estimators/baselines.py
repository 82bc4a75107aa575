"""
Baselines for the score function at a site: what is subtracted from the cost that multiplies it.

A baseline is an object. One protocol serves both objectives, whose costs differ in shape:

* router objective: one cost per datapoint, (particles, *batch, n);
* balanced objective: one cost per group of datapoints that are assigned together, (particles, *batch).

**The rule.** The baseline of a particle must not change when the cost or the assignment of any datapoint of that
particle changes. It may know earlier steps, other particles, x, and the assignments of earlier layers. The mean over
the *other datapoints* of the same particle looks innocent and is biased wherever a procedure balances: they know where
this one went. :func:`~prob_moe.testing.check_baseline` tells.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from prob_moe.padding import blank
from prob_moe.recomputation import recomputing


@runtime_checkable
class Baseline(Protocol):
    """
    What a baseline is; subclass it to inherit what has a default, or bring all of it.

    All tensors come without gradient. ``cost`` is f, (particles, *batch, n) or (particles, *batch); ``weight`` are the
    importance weights, of the same shape, all 1 in the balanced objective; ``present`` is bool (particles, *batch, n),
    False for padding, for both.
    """

    #: whether it compares particles, so that one is not enough
    needs_particles: bool = False

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """
        :returns: the baseline b without gradient, broadcastable to ``cost``; and the loss that trains it, a scalar.
        """
        ...

    def update(self, cost: Tensor, weight: Tensor, present: Tensor) -> None:
        """Learn from a step, after :meth:`value` has been asked for it: once per step."""
        return

    def state_dict(self) -> dict[str, Any]:
        """:returns: what a checkpoint has to keep, tensors and plain values; empty where nothing is remembered."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state_dict`."""
        return


class NoBaseline(Baseline):
    """Zero."""

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        return cost.new_zeros(()), cost.new_zeros(())


class DecayingAverage(Baseline):
    """
    Exponentially decaying mean of the costs of earlier steps, in nats per present datapoint, for every batch element.

    The current step never enters its own baseline: that would bias the gradient. A group's cost is compared with the
    mean times the number of its present datapoints. A batch element in which nobody is present leaves its mean alone.
    No optimiser sees the means. Make the object once, outside of the model, which runs at every step.

    :param decay: of the mean, in [0, 1).
    :raises ValueError: on another decay; in a step whose batch has another shape than that of the steps before.
    """

    def __init__(self, decay: float = 0.9) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}")
        self.decay = decay
        #: decaying sum of means, and of their weights, (*batch)
        self._total: Tensor | None = None
        self._mass: Tensor | None = None

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """:raises RuntimeError: in a repeated forward pass, which would see another mean than the first one did."""
        if recomputing():
            raise RuntimeError(
                "a decaying average has moved since the forward pass that activation checkpointing repeats; checkpoint "
                "networks, not the loss that holds the baseline"
            )
        zero = cost.new_zeros(())
        if self._total is None or self._mass is None:
            return zero, zero
        self._check(present)
        mean = torch.where(self._mass > 0, self._total / self._mass, torch.zeros_like(self._total)).to(cost)
        if _per_datapoint(cost, present):
            return mean.unsqueeze(-1), zero
        return mean * present.sum(-1), zero

    def update(self, cost: Tensor, weight: Tensor, present: Tensor) -> None:
        costs = (weight * cost).sum((0, -1) if _per_datapoint(cost, present) else 0)
        count = present.sum((0, -1))
        if self._total is None or self._mass is None:
            self._total, self._mass = torch.zeros_like(costs), torch.zeros_like(costs)
        self._check(present)
        total, mass, seen = self._total.to(costs), self._mass.to(costs), count > 0
        self._total = torch.where(seen, self.decay * total + (1 - self.decay) * costs / count.clamp(min=1), total)
        self._mass = torch.where(seen, self.decay * mass + (1 - self.decay), mass)

    def _check(self, present: Tensor) -> None:
        assert self._total is not None
        if self._total.shape != present.shape[1:-1]:
            raise ValueError(
                f"the decaying average has batch shape {tuple(self._total.shape)} from earlier steps but this step "
                f"needs {tuple(present.shape[1:-1])}; use a new ELBO or DecayingAverage object for another batch shape"
            )

    def state_dict(self) -> dict[str, Any]:
        return {} if self._total is None else {"total": self._total, "mass": self._mass}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._total, self._mass = state.get("total"), state.get("mass")


class LeaveOneOut(Baseline):
    r"""
    The mean over the other particles,
    :math:`b^{(m)} = \frac{1}{M-1}\sum_{m' \ne m} w^{(m')} f^{(m')}`, an unbiased estimate of the expected cost that is
    independent of particle m. It need not lower the variance where weights vary much from particle to particle, as
    Gumbel-Matching's do: the gradient stays unbiased in any case.

    Source: Mnih & Rezende (2016), "Variational inference for Monte Carlo objectives", eq. 7; Kool, van Hoof & Welling
    (2019), "Buy 4 REINFORCE samples, get a baseline for free!".

    >>> cost = torch.tensor([[1.0], [2.0], [6.0]])
    >>> LeaveOneOut().value(cost, torch.ones(3, 1), torch.ones(3, 1, dtype=torch.bool))[0]
    tensor([[4.0000],
            [3.5000],
            [1.5000]])
    """

    needs_particles = True

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """:raises ValueError: with one particle."""
        particles = cost.shape[0]
        if particles < 2:
            raise ValueError(f"a leave-one-out baseline needs num_particles >= 2, got {particles}")
        weighted = weight * cost
        return (weighted.sum(0) - weighted) / (particles - 1), cost.new_zeros(())


class Predicted(Baseline):
    """
    A value that does not come from costs; where it has a gradient, the loss fits it to them.

    :param predicted: broadcastable to the shape it predicts.
    :param per: ``"datapoint"``, (*batch, n): in the balanced objective its sum over the group's present datapoints; or
        ``"group"``, (*batch): for the balanced objective only. With particles in front, it may know earlier layers.
    :raises ValueError: on another ``per``; where the shapes do not fit, or the objective has no groups.
    """

    def __init__(self, predicted: Tensor, *, per: Literal["datapoint", "group"] = "datapoint") -> None:
        if per not in ("datapoint", "group"):
            raise ValueError(f"per must be 'datapoint' or 'group', got {per!r}")
        self.per = per
        self._predicted = predicted

    def predict(self, present: Tensor) -> Tensor:
        """:returns: the prediction, with gradient; what it says of padding does not matter."""
        return self._predicted

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        by_datapoint = _per_datapoint(cost, present)
        if by_datapoint and self.per == "group":
            raise ValueError(
                "the baseline predicts one number per group, per='group', but the router objective has one cost per "
                "datapoint: predict per='datapoint'"
            )
        shape = present.shape if self.per == "datapoint" else cost.shape
        predicted = self.predict(present)
        try:
            predicted = predicted.expand(shape)
        except RuntimeError:
            raise ValueError(
                f"the baseline has shape {tuple(predicted.shape)} but must broadcast to one number per {self.per}, "
                f"{tuple(shape[1:])}"
            ) from None
        if self.per == "datapoint":
            # Whatever is said of padding, NaN for one, must not reach a value.
            predicted = torch.where(present, predicted, torch.zeros_like(predicted))
        error = weight * (cost - (predicted if by_datapoint or self.per == "group" else predicted.sum(-1))) ** 2
        if not by_datapoint:  # in the units of the router objective's loss, a sum over datapoints
            error = error / present.sum(-1).clamp(min=1)
            predicted = predicted.sum(-1) if self.per == "datapoint" else predicted
        # Weighted, the regression is on the router's own distribution of the cost.
        return predicted.detach(), error.sum()


class Network(Predicted):
    """
    A network that predicts the cost from x, and is trained along.

    :param network: (*batch, n, d) -> (*batch, n), or (*batch) with ``per="group"``.
    :param inputs: (*batch, n, d); zeros take the place of padding.
    :param per: what it predicts, see :class:`Predicted`.
    """

    def __init__(
        self, network: Callable[[Tensor], Tensor], inputs: Tensor, *, per: Literal["datapoint", "group"] = "datapoint"
    ) -> None:
        super().__init__(inputs.detach(), per=per)
        self.network = network

    def predict(self, present: Tensor) -> Tensor:
        inputs = self._predicted
        if inputs.shape[-2:-1] == present.shape[-1:]:
            while present.dim() >= inputs.dim():  # particles, for all of which the network predicts once
                present = present.any(0)
            inputs = blank(inputs, present)
        return self.network(inputs)


class Sum(Baseline):
    """
    Several baselines, each for what those before it leave of the cost. ``update`` shows each of them the cost itself,
    so a :class:`DecayingAverage` comes first.

    :raises ValueError: if one that compares particles does not come last: what it is followed by would see, in the
        costs of others, the particle whose baseline it makes.
    """

    def __init__(self, *parts: Baseline) -> None:
        if any(part.needs_particles for part in parts[:-1]):
            raise ValueError("a baseline that compares particles must come last in a Sum")
        self.parts = parts
        self.needs_particles = bool(parts) and parts[-1].needs_particles

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        baseline, loss = cost.new_zeros(()), cost.new_zeros(())
        for part in self.parts:
            own, own_loss = part.value(cost - baseline, weight, present)
            baseline, loss = baseline + own.detach(), loss + own_loss
        return baseline, loss

    def update(self, cost: Tensor, weight: Tensor, present: Tensor) -> None:
        for part in self.parts:
            part.update(cost, weight, present)

    def state_dict(self) -> dict[str, Any]:
        states = {str(index): part.state_dict() for index, part in enumerate(self.parts)}
        return {index: state for index, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for index, part in enumerate(self.parts):
            part.load_state_dict(state.get(str(index), {}))


def _per_datapoint(cost: Tensor, present: Tensor) -> bool:
    return cost.dim() == present.dim()
