"""log P of a batch element does not depend on how many rows of padding stand beside its datapoints."""

import pytest
import torch

from prob_moe.numerics.prices.likelihood import matching_log_prob
from tests.numerics.prices.test_likelihood import random_logits


def padded(logits: torch.Tensor, assignment: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The datapoints in their order, among absent ones whose logits are no zeros."""
    n, k = logits.shape
    places = torch.randperm(length, generator=torch.Generator().manual_seed(1))[:n].sort().values
    rows = random_logits(length, k, seed=2, scale=30.0).index_copy(0, places, logits)
    return rows, torch.full((length,), -1).index_copy(0, places, assignment)


@pytest.mark.parametrize("length", [14, 5_000])
@pytest.mark.parametrize(("n", "k", "scale"), [(9, 3, 1.0), (12, 4, 10.0), (10, 5, 1.0), (8, 8, 5.0)])
def test_padding_changes_nothing(n, k, scale, length):
    logits = random_logits(n, k, seed=n, scale=scale)
    assignment = torch.arange(n) % k
    alone = matching_log_prob(logits, assignment, -(-n // k))
    beside = matching_log_prob(*padded(logits, assignment, length), -(-n // k))
    torch.testing.assert_close(beside, alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "k"), [(12, 3), (15, 5)])
def test_longer_companions_change_nothing(n, k):
    """Companions of 3,000 datapoints are a matter of other rules and fewer points, those of their own."""
    logits, assignment = random_logits(n, k, seed=n), torch.arange(n) % k
    longer = random_logits(3_000, k, seed=1), torch.arange(3_000) % k
    together = [torch.stack(pair) for pair in zip(padded(logits, assignment, 3_000), longer)]
    both = matching_log_prob(*together, torch.tensor([n // k, 3_000 // k]), tolerance=1.0)
    for position, (one, capacity) in enumerate([((logits, assignment), n // k), (longer, 3_000 // k)]):
        alone = matching_log_prob(*one, capacity, tolerance=1.0)
        torch.testing.assert_close([value[position] for value in both], list(alone), rtol=1e-9, atol=1e-9)
