"""Capacity counts who is present: the law of a batch element is the same alone and beside longer ones."""

import pytest
import torch
from torch import Tensor

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    capacity_from_factor,
)
from tests.distributions.test_contract import DISTRIBUTIONS, logits_of

#: present datapoints of the batch elements; the last one is as long as the padded shape
PRESENT = (5, 3, 9)


def padded(logits: Tensor) -> tuple[Tensor, Tensor]:
    """A batch whose elements hold the first PRESENT rows, NaN behind them, and its mask."""
    n, k = max(PRESENT), logits.shape[-1]
    together = torch.full((len(PRESENT), n, k), torch.nan, dtype=logits.dtype)
    for element, present in zip(together, PRESENT):
        element[:present] = logits[:present]
    return together, torch.arange(n) < torch.tensor(PRESENT).unsqueeze(-1)


@pytest.mark.parametrize("capacity", [{"capacity_factor": 1.0}, {"capacity_factor": 1.4}, {"capacity": None}])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_law_of_an_element_is_the_same_alone_and_beside_longer_ones(
    distribution: type[AssignmentDistribution], capacity: dict
) -> None:
    logits = logits_of(max(PRESENT), 3)
    together, mask = padded(logits)
    explicit = "capacity" in capacity
    limits = torch.tensor([2, 1, 4])  # tight, tight, slack
    beside = distribution(together, mask=mask, **({"capacity": limits} if explicit else capacity))
    torch.manual_seed(0)
    drawn = beside.sample(torch.Size((40,)))
    weights, router = beside.importance_weights(drawn), beside.router_log_prob(drawn)
    for b, present in enumerate(PRESENT):
        alone = distribution(logits[:present], **({"capacity": int(limits[b])} if explicit else capacity))
        assert torch.equal(alone.mode, beside.mode[b, :present])
        if distribution.limited:
            assert alone.capacity == beside.capacity[b]
        value = drawn[:, b, :present]
        assert alone.support.check(value).all()
        torch.testing.assert_close(alone.router_log_prob(value), router[:, b, :present])
        if distribution is DependentRounding:
            torch.testing.assert_close(alone.log_marginals, beside.log_marginals[b, :present], rtol=0, atol=1e-6)
        else:
            ours = beside.log_prob(drawn)[:, b]
            # Two integrals, whose points may lie otherwise.
            tolerance = 1e-5 if distribution is GumbelMatching else 1e-9
            torch.testing.assert_close(ours, alone.log_prob(value), rtol=0, atol=tolerance)
        if distribution is not GumbelMatching:  # whose weights need the noise of the draw
            torch.testing.assert_close(alone.importance_weights(value), weights[:, b, :present], rtol=1e-6, atol=0)


@pytest.mark.parametrize("distribution", [d for d in DISTRIBUTIONS if d.limited])
def test_every_element_has_its_own_capacity(distribution: type[AssignmentDistribution]) -> None:
    """Of loads, weights and draws, against the elements one by one; and after expansion."""
    logits, limits = 2 * logits_of(6, 3), torch.tensor([2, 3, 6])
    routing = distribution(logits.expand(3, 6, 3), capacity=limits)
    assert routing.slots == 6
    grown = routing.expand((4, 3))
    assert torch.equal(grown.capacity, limits.expand(4, 3))
    value = grown.sample((500,))
    loads = grown.loads(value).amax((0, 1, -1))
    assert (loads <= limits).all()
    assert (loads > 2).tolist() == [False, True, True]
    assert grown.support.check(value).all()
    weights = grown.importance_weights(value)
    indicators = torch.nn.functional.one_hot(value.clamp(min=0), 3) * (value >= 0).unsqueeze(-1)
    draws = (weights.unsqueeze(-1) * indicators).flatten(0, 1)
    error = draws.std(0) / len(draws) ** 0.5
    p = logits.softmax(-1)
    assert ((draws.mean(0) - p) / (error + (p * (1 - p) / len(draws)).sqrt())).abs().max() < 5


def test_padding_is_not_counted() -> None:
    """12 datapoints with 0, 12 and 36 padded rows: the capacity stays, the slots follow the shape."""
    for padding, slots in ((0, 4), (12, 8), (36, 16)):
        mask = torch.arange(12 + padding) < 12
        routing = GumbelMatching(torch.zeros(12 + padding, 3), capacity_factor=1.0, mask=mask)
        assert routing.capacity == 4
        assert routing.slots == slots
        assert repr(routing).endswith("capacity=4)")


def test_one_rounding_rule_for_numbers_and_tensors() -> None:
    counts = torch.arange(2000)
    for factor, k in ((1.1, 10), (1.25, 8), (0.3, 7), (1 / 3, 3), (2.7, 1)):
        expected = [capacity_from_factor(factor, n, k) for n in counts.tolist()]
        assert capacity_from_factor(factor, counts, k).tolist() == expected


def test_slots_are_static_and_no_more_than_datapoints() -> None:
    assert GumbelMatching(torch.zeros(4, 2), capacity=10**12).slots == 4
    assert CapacitySkip(torch.zeros(2, 4, 2), capacity=torch.tensor([3, 2])).slots == 3
    assert GumbelMatching(torch.zeros(0, 2), capacity=3).slots == 1


def test_enumeration_wants_one_capacity() -> None:
    routing = CapacitySkip(torch.zeros(2, 3, 2), capacity=torch.tensor([2, 3]))
    with pytest.raises(NotImplementedError, match=r"capacity=2 to 3\).*capacities differ"):
        routing.enumerate_support()
    same = CapacitySkip(torch.zeros(2, 3, 2), capacity=torch.tensor([2, 2]))
    assert torch.equal(same.enumerate_support(), CapacitySkip(torch.zeros(2, 3, 2), capacity=2).enumerate_support())


def test_too_many_in_one_element() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    with pytest.raises(ValueError, match=r"n = 3 datapoints exceed the k \* capacity = 2 \* 1 slots"):
        GumbelMatching(torch.zeros(2, 3, 2), capacity=1, mask=mask)
    with pytest.raises(ValueError, match=r"n = 2 datapoints exceed the k \* capacity = 1 \* 1 slots"):
        GumbelMatching(torch.zeros(2, 2, 1), capacity=torch.tensor([2, 1]))
