"""The baselines that gradient checks run through, by name."""

import torch
from torch import Tensor

from prob_moe.estimators import Baseline, DecayingAverage, LeaveOneOut, Network, NoBaseline, Predicted, Sum


class BestOfOthers(Baseline):
    """A user's own: the largest cost of the other particles."""

    needs_particles = True

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        others = [torch.cat([cost[:m], cost[m + 1 :]]).amax(0) for m in range(len(cost))]
        return torch.stack(others), cost.new_zeros(())


class WithOwnParticle(Baseline):
    """Biased: the mean includes the particle that it is subtracted from."""

    needs_particles = True

    def value(self, cost: Tensor, weight: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        return cost.mean(0), cost.new_zeros(())


NAMES = (
    *("none", "zero", "decaying", "pyro's decaying", "leave-one-out", "network", "pyro's network", "value"),
    *("pyro's value", "sum", "own"),
)
#: for the balanced objective only, which has a cost per group
NAMES_OF_GROUPS = ("network of groups",)


def make(name: str, n: int) -> tuple[Baseline | dict | None, int]:
    """:returns: a baseline for n datapoints, and how many particles it needs."""
    inputs = torch.linspace(0, 1, n, dtype=torch.float64)
    values = torch.linspace(-4, -2, n, dtype=torch.float64)
    return {
        "none": (None, 1),
        "zero": (NoBaseline(), 1),
        "decaying": (DecayingAverage(), 1),
        "pyro's decaying": ({"use_decaying_avg_baseline": True}, 1),
        "leave-one-out": (LeaveOneOut(), 3),
        "network": (Network(lambda x: 2 * x - 4, inputs), 1),
        "pyro's network": ({"nn_baseline": lambda x: 2 * x - 4, "nn_baseline_input": inputs}, 1),
        "network of groups": (Network(lambda x: x.sum() - 4 * n, inputs, per="group"), 1),
        "value": (Predicted(values), 1),
        "pyro's value": ({"baseline_value": values}, 1),
        "sum": (Sum(DecayingAverage(), LeaveOneOut()), 2),
        "own": (BestOfOthers(), 3),
        "biased": (WithOwnParticle(), 2),
    }[name]
