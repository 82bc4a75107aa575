"""The tail of the importance weights: what the law says against draws, and their precision."""

import math

import pytest
import torch

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.testing.statistics import deviation

THRESHOLDS = torch.tensor([1.0, 1.5, 2.0, 3.0, 4.0], dtype=torch.float64)
DRAWS = 40_000


def survival(capacity: int) -> torch.Tensor:
    """Of a weight of two indifferent experts that are full: which of 2c logistic differences is the (c + 1)-th."""
    p = 1 / (2 * THRESHOLDS)
    n = 2 * capacity
    # w > t means that more than c of the n differences lie above a level that one exceeds with probability 1 / 2t.
    return torch.stack([math.comb(n, m) * p**m * (1 - p) ** (n - m) for m in range(capacity + 1, n + 1)]).sum(0)


@pytest.mark.parametrize("capacity", [pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_weights_of_a_matching_fall_with_the_exponent_of_the_law(capacity: int) -> None:
    routing = GumbelMatching(torch.zeros(2 * capacity, 2, dtype=torch.float64), capacity=capacity)
    weights = routing.importance_weights(routing.sample(torch.Size([DRAWS])))[:, 0]
    above = (weights.unsqueeze(-1) > THRESHOLDS).double()
    expected = survival(capacity)
    least = (expected * (1 - expected) / DRAWS).sqrt()
    assert deviation(above, expected, least).worst()[0] < 5
    far = torch.tensor([1e3, 1e4], dtype=torch.float64)
    exponent = 1 / routing.weight_pareto_k
    assert exponent == capacity + 1
    # The closed form's slope far out is the exponent; another one fails the same check.
    tail = torch.stack([math.comb(2 * capacity, m) * (0.5 / far) ** m for m in (capacity + 1, capacity + 2)])
    slope = float((tail[0, 0] / tail[0, 1]).log() / math.log(10))
    assert slope == pytest.approx(exponent)
    assert deviation(above, expected[0] * THRESHOLDS ** -(exponent + 1), least).worst()[0] > 5


@pytest.mark.parametrize("kind", [IndependentRouting, CapacitySkip, DependentRounding])
def test_other_weights_are_bounded(kind: type[AssignmentDistribution]) -> None:
    assert kind(torch.randn(6, 3), capacity=2).weight_pareto_k == -math.inf


def test_the_heaviest_tail_of_a_batch_counts_and_room_for_all_is_no_tail() -> None:
    logits = torch.randn(2, 4, 4)
    assert GumbelMatching(logits, capacity=torch.tensor([1, 3])).weight_pareto_k == 0.5
    assert GumbelMatching(logits, capacity=4).weight_pareto_k == -math.inf
    assert GumbelMatching(torch.randn(1, 4), capacity=1).weight_pareto_k == -math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [IndependentRouting, CapacitySkip, DependentRounding, GumbelMatching])
def test_half_precision_logits_have_weights_and_log_probabilities_in_float32(
    kind: type[AssignmentDistribution], dtype: torch.dtype
) -> None:
    logits = (2 * torch.randn(12, 3)).to(dtype)
    torch.manual_seed(0)
    coarse = kind(logits, capacity=4)
    z = coarse.sample()
    torch.manual_seed(0)
    fine = kind(logits.float(), capacity=4)
    assert torch.equal(fine.sample(), z)
    weights, log_p = coarse.importance_weights(z), coarse.router_log_prob(z)
    assert weights.dtype == log_p.dtype == torch.float32
    torch.testing.assert_close(weights, fine.importance_weights(z), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_p, fine.router_log_prob(z), rtol=1e-5, atol=1e-5)
