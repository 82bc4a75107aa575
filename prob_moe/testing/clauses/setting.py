"""What a clause is given: the distribution's maker, the sizes to try, and how much to sample."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from math import comb
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution


class ClauseFailed(Exception):
    """The distribution breaks the clause; the message has the numbers."""


class ClauseSkipped(Exception):
    """The clause does not apply; the message says why."""


class Size(NamedTuple):
    """One routing problem: n datapoints, k experts, c datapoints per expert at most."""

    num_datapoints: int
    num_experts: int
    capacity: int

    def __str__(self) -> str:
        return f"n={self.num_datapoints} k={self.num_experts} capacity={self.capacity}"


#: tight, slack, two experts, capacity 1, fewer datapoints than experts, one expert, one datapoint
SIZES = (
    Size(6, 3, 2),
    Size(6, 3, 3),
    Size(4, 3, 2),
    Size(5, 2, 3),
    Size(4, 4, 1),
    Size(2, 3, 1),
    Size(3, 1, 3),
    Size(1, 1, 1),
)

#: sizes with at most this many choices, k^n or binom(k, m)^n, are enumerated
MAX_CHOICES = 300


def sizes_of_sets(num_selected: int) -> tuple[Size, ...]:
    """
    Sizes for procedures that select m experts for each datapoint: those above that have enough experts, with m times
    the capacity, and one in which most datapoints lose an expert.
    """
    m = num_selected
    return (
        *(Size(n, k, min(n, m * c)) for n, k, c in SIZES if k >= m),
        Size(4, m + 1, 1),
    )


@dataclass(frozen=True)
class Setting:
    """The arguments of :func:`~prob_moe.testing.check_assignment_distribution`."""

    make: Callable[..., AssignmentDistribution]
    sizes: tuple[Size, ...]
    num_samples: int
    max_standard_errors: float
    log_prob_tolerance: float
    device: torch.device

    @property
    def enumerable_sizes(self) -> list[Size]:
        return [size for size in self.sizes if self.choices(size) ** size.num_datapoints <= MAX_CHOICES]

    @property
    def num_selected(self) -> int | None:
        """How many experts the procedure selects for each datapoint; None without a dimension for them."""
        return self.routing(self.sizes[0]).num_selected

    def event(self, size: Size) -> tuple[int, ...]:
        """The event shape, (n,) or (m, n)."""
        m = self.num_selected
        return (size.num_datapoints,) if m is None else (m, size.num_datapoints)

    def choices(self, size: Size) -> int:
        """What one datapoint can choose: one of k experts, or of the sets of m."""
        return comb(size.num_experts, self.num_selected or 1)

    @property
    def padded_size(self) -> Size:
        """A tight problem of which 4 of the 6 datapoints are present."""
        m = self.num_selected or 1
        return Size(6, m + 1, -(-4 * m // (m + 1)))

    def logits(self, size: Size, *batch: int) -> Tensor:
        """The same float64 logits (*batch, n, k) whenever asked: unbalanced, neither flat nor sharp."""
        generator = torch.Generator().manual_seed(5)
        shape = (*batch, size.num_datapoints, size.num_experts)
        return (1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(self.device)

    def constrained_logits(self, size: Size) -> Tensor:
        """The same, with experts forbidden to some datapoints; datapoint i may still go to expert i mod k, and to m."""
        logits = self.logits(size)
        n, k, _ = size
        m = self.num_selected or 1
        for i in range(1, min(n, k)):
            if k > m:
                logits[i, (i + 1) % k] = -torch.inf
        logits[0, m:] = -torch.inf
        return logits

    def routing(self, size: Size, *batch: int) -> AssignmentDistribution:
        return self.make(self.logits(size, *batch), capacity=size.capacity)

    def takes(self, argument: str) -> bool:
        """Whether ``make`` can be called with a keyword."""
        parameters = inspect.signature(self.make).parameters.values()
        return any(p.name == argument or p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)

    def validated(self) -> dict[str, Any]:
        return {"validate_args": True} if self.takes("validate_args") else {}


def expect(condition: object, message: str) -> None:
    if not condition:
        raise ClauseFailed(message)


def expect_shape(what: str, size: Size, tensor: Tensor, shape: tuple[int, ...]) -> None:
    expect(tuple(tensor.shape) == shape, f"at {size}, {what} has shape {tuple(tensor.shape)} instead of {shape}")


def log_prob_of(routing: AssignmentDistribution, value: Tensor) -> Tensor:
    try:
        return routing.log_prob(value)
    except NotImplementedError as error:
        raise ClauseSkipped(f"no log_prob: {error}") from None
