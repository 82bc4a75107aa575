"""Baselines for the score function at an assignment site, read from Pyro's own ``infer={"baseline": {...}}``."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prob_moe.estimators.sites import Site
from prob_moe.padding import blank
from prob_moe.recomputation import recomputing


@dataclass(frozen=True)
class BaselineOptions:
    """
    What a site asks for; the keys of ``infer["baseline"]``. The baselines asked for are added up.

    :param nn_baseline: a network, called with ``nn_baseline_input``, that predicts the cost of every datapoint.
    :param nn_baseline_input: its input, without gradient.
    :param use_decaying_avg_baseline: the mean cost of earlier steps.
    :param baseline_beta: decay of that mean, in [0, 1).
    :param baseline_value: a tensor that broadcasts to one number a datapoint.
    :param use_leave_one_out_baseline: the mean over the other particles, for every datapoint.
    """

    nn_baseline: Callable[[Tensor], Tensor] | None = None
    nn_baseline_input: Tensor | None = None
    use_decaying_avg_baseline: bool = False
    baseline_beta: float = 0.9
    baseline_value: Tensor | None = None
    use_leave_one_out_baseline: bool = False

    @classmethod
    def of(cls, name: str, site: Site, present: Tensor | None = None) -> "BaselineOptions":
        """
        :param present: bool (*batch, n), False for padding, where the network's input (*batch, n, d) is set to 0.
        :raises ValueError: see :meth:`read`.
        """
        given: dict[str, Any] = dict(site["infer"].get("baseline", {}))
        return cls.read(f"site {name!r}", given)._without_padding(present)

    @classmethod
    def read(cls, where: str, given: dict[str, Any]) -> "BaselineOptions":
        """
        :param where: what the options are for, named in errors.
        :raises ValueError: on an unknown key, or keys that contradict one another.
        """
        unknown = sorted(set(given) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(
                f"{where}: unknown baseline options {unknown}; known are {sorted(cls.__dataclass_fields__)}"
            )
        options = cls(**given)
        if options.nn_baseline is not None and options.baseline_value is not None:
            raise ValueError(f"{where}: give nn_baseline or baseline_value, not both")
        if (options.nn_baseline is None) != (options.nn_baseline_input is None):
            raise ValueError(f"{where}: nn_baseline and nn_baseline_input go together")
        if not 0 <= options.baseline_beta < 1:
            raise ValueError(f"{where}: baseline_beta must be in [0, 1), got {options.baseline_beta!r}")
        return options

    def _without_padding(self, present: Tensor | None) -> "BaselineOptions":
        inputs = self.nn_baseline_input
        if present is None or inputs is None or inputs.shape[-2:-1] != present.shape[-1:]:
            return self
        while present.dim() >= inputs.dim():  # particles, for all of which the network predicts once
            present = present.any(0)
        return replace(self, nn_baseline_input=blank(inputs, present))


@dataclass
class DecayingAverage:
    """
    Exponentially decaying mean of the cost of earlier steps, corrected for its start at zero.

    The current step never enters its own baseline: that would bias the gradient. The mean is over datapoints and
    particles; other batch dimensions keep a mean each. It is a buffer, not a Pyro parameter, so no optimiser sees it.
    """

    total: Tensor
    steps: int = 0

    def value(self, beta: float) -> Tensor:
        """:raises RuntimeError: in a repeated forward pass, which would see another mean than the first one did."""
        if recomputing():
            raise RuntimeError(
                "a decaying average has moved since the forward pass that activation checkpointing repeats; checkpoint "
                "networks, not the loss that holds the baseline"
            )
        return self.total / (1 - beta**self.steps) if self.steps else self.total

    def update(self, mean_cost: Tensor, beta: float) -> None:
        self.total = beta * self.total + (1 - beta) * mean_cost
        self.steps += 1


def leave_one_out(weighted_cost: Tensor) -> Tensor:
    r"""
    :math:`b^{(m)}_i = \frac{1}{M-1}\sum_{m' \ne m} w^{(m')}_i f^{(m')}_i`, an unbiased estimate of :math:`E_{p_i}[f_i]`
    that is independent of particle m.

    :param weighted_cost: (M, *) with M >= 2 particles.

    >>> leave_one_out(torch.tensor([[1.0], [2.0], [6.0]]))
    tensor([[4.0000],
            [3.5000],
            [1.5000]])
    """
    num_particles = weighted_cost.shape[0]
    return (weighted_cost.sum(0) - weighted_cost) / (num_particles - 1)


class Baselines:
    """
    The baselines of all sites, with the running means that they keep between steps.

    All shapes are (M, *batch, n) with M particles in front and the datapoints at ``data_dim``.
    """

    def __init__(self) -> None:
        self._averages: dict[str, DecayingAverage] = {}

    def __call__(
        self, name: str, options: BaselineOptions, cost: Tensor, weight: Tensor, data_dim: int
    ) -> tuple[Tensor, Tensor]:
        """
        :param cost: f, without gradient.
        :param weight: w, without gradient.
        :returns: the baseline b without gradient, broadcastable to ``cost``, and the loss that trains it (a scalar).
        """
        baseline, loss = cost.new_zeros(()), cost.new_zeros(())
        if options.use_decaying_avg_baseline:
            baseline = baseline + self._decaying_average(name, options.baseline_beta, cost, weight, data_dim)
        if options.use_leave_one_out_baseline:
            if cost.shape[0] < 2:
                raise ValueError(f"site {name!r}: a leave-one-out baseline needs num_particles >= 2")
            baseline = baseline + leave_one_out(weight * cost)
        predicted = _predicted(options)
        if predicted is not None:
            shape = tuple(cost.shape[1:])
            try:
                predicted = predicted.expand(shape)
            except RuntimeError:
                raise ValueError(
                    f"site {name!r}: the baseline has shape {tuple(predicted.shape)} but must broadcast to one number "
                    f"a datapoint, {shape}"
                ) from None
            # Whatever is said of padding, NaN for one, must not reach a value.
            predicted = torch.where((weight > 0).any(0), predicted, torch.zeros_like(predicted))
            # Weighted, the regression is on the router's own distribution of the cost.
            loss = (weight * (cost - baseline - predicted) ** 2).sum()
            baseline = baseline + predicted.detach()
        return baseline, loss

    def _decaying_average(self, name: str, beta: float, cost: Tensor, weight: Tensor, data_dim: int) -> Tensor:
        weighted = (weight * cost).mean(0)
        # An unbiased mean over the router's distribution, over everything but the batch.
        mean_cost = weighted.mean(data_dim, keepdim=True)
        average = self._averages.setdefault(name, DecayingAverage(torch.zeros_like(mean_cost)))
        if average.total.shape != mean_cost.shape:
            raise ValueError(
                f"site {name!r}: the decaying average has shape {tuple(average.total.shape)} from earlier steps but "
                f"this step needs {tuple(mean_cost.shape)}; use a new ELBO object for another batch shape"
            )
        value = average.value(beta)
        average.update(mean_cost, beta)
        return value

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What a checkpoint has to keep: the running means by site."""
        return {name: {"total": average.total, "steps": average.steps} for name, average in self._averages.items()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        self._averages = {name: DecayingAverage(**average) for name, average in state.items()}


def _predicted(options: BaselineOptions) -> Tensor | None:
    if options.nn_baseline is not None and options.nn_baseline_input is not None:
        return options.nn_baseline(options.nn_baseline_input.detach())
    return None if options.baseline_value is None else torch.as_tensor(options.baseline_value)
