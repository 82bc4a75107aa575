"""The best assignment of as many places as the experts hold, against all sets of pairs."""

from itertools import combinations, product

import pytest
import torch

from prob_moe.numerics import solve_partial_assignment


def best_by_brute_force(scores: torch.Tensor, capacity: int, m: int) -> tuple[int, float]:
    """The most places that can be taken, and the largest score among all ways to take so many."""
    n, k = scores.shape
    rows = [[s for size in range(m + 1) for s in combinations(range(k), size)] for _ in range(n)]
    best = (-1, -torch.inf)
    for chosen in product(*rows):
        loads = [sum(j in s for s in chosen) for j in range(k)]
        total = sum(float(scores[i, j]) for i, s in enumerate(chosen) for j in s)
        if max(loads) <= capacity and total > -torch.inf:
            best = max(best, (sum(loads), total))
    return best


@pytest.mark.parametrize("forbidden", [0.0, 0.3])
@pytest.mark.parametrize(("n", "k", "m"), [(3, 3, 2), (2, 4, 3), (3, 3, 1), (1, 3, 3), (3, 4, 2)])
def test_several_places_against_brute_force(n: int, k: int, m: int, forbidden: float) -> None:
    generator = torch.Generator().manual_seed(10 * n + k + m)
    for capacity in range(1, n + 2):
        scores = 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)
        scores[torch.rand(n, k, generator=generator) < forbidden] = -torch.inf
        value = solve_partial_assignment(scores, capacity, num_selected=m)
        assert value.shape == (m, n)
        taken = [(i, j) for column in value.tolist() for i, j in enumerate(column) if j >= 0]
        assert len(set(taken)) == len(taken)
        assert max([0, *torch.tensor([j for _, j in taken]).long().bincount().tolist()]) <= capacity
        places, total = best_by_brute_force(scores, capacity, m)
        assert len(taken) == places
        assert sum(float(scores[i, j]) for i, j in taken) == pytest.approx(total)


def test_padding_and_batches_of_several_places() -> None:
    scores = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True, False, True, True, False]])
    capacity = torch.tensor([2, 1])
    together = solve_partial_assignment(scores, capacity, num_selected=2, mask=mask)
    for b in range(2):
        alone = solve_partial_assignment(scores[b, mask[b]], int(capacity[b]), num_selected=2)
        assert torch.equal(together[b][:, mask[b]], alone)
        assert bool((together[b][:, ~mask[b]] == -1).all())
