"""The running mean of earlier costs in the balanced objective."""

from dataclasses import dataclass

from torch import Tensor

from prob_moe.recomputation import recomputing


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
