import pytest
import torch

from prob_moe.distributions import CapacitySkip, IndependentRouting
from tests.distributions.test_contract import logits_of


@pytest.mark.parametrize(("n", "k", "capacity"), [(4, 2, 2), (5, 3, 2), (6, 3, 2), (4, 3, 3), (3, 3, 1)])
def test_log_prob_sums_to_one_and_matches_frequencies(n: int, k: int, capacity: int) -> None:
    skip = CapacitySkip(logits_of(n, k), capacity=capacity)
    support = skip.enumerate_support()
    probabilities = skip.log_prob(support).exp()
    torch.testing.assert_close(probabilities.sum(), torch.tensor(1.0, dtype=torch.float64))
    num_samples = 20_000
    values, counts = torch.cat([support, skip.sample((num_samples,))]).unique(dim=0, return_counts=True)
    assert len(values) == len(support)
    expected = skip.log_prob(values).exp() * num_samples
    # Pearson's statistic is chi-squared, with mean df and variance about 2 df (more where counts are small).
    statistic = ((counts - 1 - expected) ** 2 / expected).sum()
    degrees = len(support) - 1
    assert abs(statistic - degrees) < 5 * (2 * degrees + (1 / expected).sum()) ** 0.5


def test_wrong_drops_have_no_probability() -> None:
    skip = CapacitySkip(torch.zeros(3, 2), capacity=2)
    dropped_with_room = torch.tensor([0, 1, ~1])
    assert skip.log_prob(dropped_with_room) == -torch.inf


def test_weights_count_what_was_skipped() -> None:
    skip = CapacitySkip(torch.zeros(4, 2), capacity=2)
    torch.testing.assert_close(skip.importance_weights(torch.tensor([0, 0, ~0, 1])), torch.tensor([1.5, 1.5, 0.0, 1.0]))


def test_mode_is_the_best_within_capacity() -> None:
    logits = torch.tensor([[2.0, 0.0], [4.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    assert CapacitySkip(logits, capacity=2).mode.tolist() == [1, 0, 0, 1]
    assert CapacitySkip(logits, capacity=1).mode.tolist() == [~0, 0, ~0, 1]


def test_without_overflow_it_is_independent_routing() -> None:
    logits = logits_of(5, 3)
    value = torch.tensor([0, 1, 2, 1, 0])
    torch.testing.assert_close(
        CapacitySkip(logits, capacity=5).log_prob(value), IndependentRouting(logits).log_prob(value)
    )


def test_log_prob_gradient_is_finite_and_right() -> None:
    logits = logits_of(4, 3).requires_grad_()
    value = torch.tensor([0, 0, ~0, 1])
    assert torch.autograd.gradcheck(lambda phi: CapacitySkip(phi, capacity=2).log_prob(value), logits)


def test_enumeration_refuses_large_cases_with_the_count() -> None:
    with pytest.raises(ValueError, match=r"would list 1.07e\+09 values"):
        CapacitySkip(torch.zeros(30, 2), capacity=15).enumerate_support()
