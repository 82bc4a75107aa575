"""All values of an assignment distribution, for the small cases in which exact answers check everything else."""

from collections.abc import Iterator
from itertools import combinations, product
from math import comb
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from prob_moe.distributions.base import AssignmentDistribution

#: more values than this are refused rather than enumerated
MAX_VALUES = 2**18


def enumerate_choices(routing: "AssignmentDistribution", expand: bool = True) -> Tensor:
    """All choices without drops, k^n or binom(k, m)^n, long (count, *batch, n) or (count, *batch, m, n)."""
    _refuse_large(routing, count_choices(routing))
    return _with_batch(routing, _as_values(routing, [[z for s in c for z in s] for c in _choices(routing)]), expand)


def enumerate_matchings(routing: "AssignmentDistribution", expand: bool = True) -> Tensor:
    """All assignments within capacity, nobody dropped, long (count, *batch, n)."""
    n, k, capacity = routing.num_datapoints, routing.num_experts, _common_capacity(routing)
    _refuse_large(routing, _count_matchings(n, k, capacity))
    values = enumerate_within_capacity(n, k, capacity)
    return _with_batch(routing, values, expand)


def enumerate_skips(routing: "AssignmentDistribution", expand: bool = True) -> Tensor:
    """All choices with all ways to drop the overflow, long (count, *batch, n) or (count, *batch, m, n)."""
    capacity = _common_capacity(routing)
    _refuse_large(routing, count_choices(routing))
    values: list[list[int]] = []
    for choices in _choices(routing):
        flat = [z for chosen in choices for z in chosen]
        members = [[i for i, z in enumerate(flat) if z == j] for j in range(routing.num_experts)]
        for dropped in product(*(combinations(m, max(0, len(m) - capacity)) for m in members)):
            out = {i for group in dropped for i in group}
            values.append([~z if i in out else z for i, z in enumerate(flat)])
        _refuse_large(routing, len(values))
    return _with_batch(routing, _as_values(routing, values), expand)


def count_choices(routing: "AssignmentDistribution") -> int:
    """In how many ways all datapoints can choose: k^n, or binom(k, m)^n."""
    return comb(routing.num_experts, routing.num_selected or 1) ** routing.num_datapoints


def _choices(routing: "AssignmentDistribution") -> Iterator[tuple[tuple[int, ...], ...]]:
    """What all datapoints choose: for each a tuple of ascending experts, of one where ``num_selected`` is None."""
    sets = combinations(range(routing.num_experts), routing.num_selected or 1)
    return product(sets, repeat=routing.num_datapoints)


def _as_values(routing: "AssignmentDistribution", rows: list[list[int]]) -> Tensor:
    """:param rows: the entries of datapoint 0, of datapoint 1, ..., one list for every value."""
    values = torch.tensor(rows, dtype=torch.long)
    if routing.num_selected is None:
        return values
    return values.view(len(rows), routing.num_datapoints, routing.num_selected).mT.contiguous()


def enumerate_within_capacity(num_datapoints: int, num_experts: int, capacity: int) -> Tensor:
    """
    All assignments in which no expert gets more than its capacity, long (count, n).

    >>> enumerate_within_capacity(2, 2, capacity=1)
    tensor([[0, 1],
            [1, 0]])
    """

    def extend(prefix: list[int], free: list[int]) -> Iterator[list[int]]:
        if len(prefix) == num_datapoints:
            yield prefix
            return
        for j in range(num_experts):
            if free[j]:
                yield from extend([*prefix, j], [room - (a == j) for a, room in enumerate(free)])

    values = list(extend([], [capacity] * num_experts))
    return torch.tensor(values, dtype=torch.long).reshape(len(values), num_datapoints)


def _common_capacity(routing: "AssignmentDistribution") -> int:
    """The capacity that all batch elements have."""
    assert routing.capacity is not None
    if not routing.capacity.numel():
        return 1
    if bool((routing.capacity != routing.capacity.flatten()[0]).any()):
        raise NotImplementedError(
            f"enumerate_support of {routing} would list other values for every batch element, because their capacities "
            "differ; enumerate batch elements of the same capacity"
        )
    return int(routing.capacity.flatten()[0])


def _count_matchings(n: int, k: int, capacity: int) -> int:
    """Number of assignments within capacity: fill one expert after the other."""
    ways = {0: 1}
    for _ in range(k):
        following: dict[int, int] = {}
        for used, count in ways.items():
            for load in range(min(capacity, n - used) + 1):
                following[used + load] = following.get(used + load, 0) + count * comb(n - used, load)
        ways = following
    return ways.get(n, 0)


def _refuse_large(routing: "AssignmentDistribution", count: int) -> None:
    if routing.mask is not None:
        raise NotImplementedError("enumerate_support: leave padding out of the logits instead of masking it")
    if count > MAX_VALUES:
        raise ValueError(
            f"enumerate_support of {routing} would list {count:.3g} values, more than {MAX_VALUES}; "
            "use fewer datapoints or experts, or estimate with samples"
        )


def _with_batch(routing: "AssignmentDistribution", values: Tensor, expand: bool) -> Tensor:
    values = values.to(routing.logits.device)
    values = values.reshape(values.shape[:1] + (1,) * len(routing.batch_shape) + routing.event_shape)
    return values.expand(values.shape[:1] + routing.batch_shape + routing.event_shape) if expand else values
