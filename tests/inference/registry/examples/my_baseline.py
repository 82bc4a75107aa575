"""A baseline of one's own, in one file."""

from typing import Any

from torch import Tensor

from inference.registry import BaselineEntry, Registry
from prob_moe.estimators import Baseline


class StepBefore(Baseline):
    """The mean cost of the step before, in nats per present datapoint; 0 in the first step."""

    def __init__(self) -> None:
        self._mean: Tensor | None = None

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        if self._mean is None:
            return cost.new_zeros(()), cost.new_zeros(())
        # The balanced objective has one cost for all datapoints of a group.
        share = 1 if cost.dim() == present.dim() else present.sum(-1)
        return self._mean * share, cost.new_zeros(())

    def update(self, cost: Tensor, weight: Tensor, present: Tensor) -> None:
        self._mean = (weight * cost).sum() / present.sum().clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._mean is None else {"mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean = state.get("mean")


def register(registry: Registry) -> None:
    registry.add(BaselineEntry("step before", StepBefore))
