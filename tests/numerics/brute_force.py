"""Small-case truth for assignments: enumeration of assignments, their exchange graphs and their prices."""

import itertools

import torch
from torch import Tensor


def enumerate_assignments(n: int, k: int, capacity: int) -> Tensor:
    """All assignments of n datapoints to k experts with at most ``capacity`` each, (m, n)."""
    rows = [z for z in itertools.product(range(k), repeat=n) if max(z.count(j) for j in range(k)) <= capacity]
    return torch.tensor(rows)


def draw_scores(logits: Tensor, num_draws: int, seed: int) -> Tensor:
    """Scores φ + Gumbel noise, (num_draws, n, k)."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(num_draws, *logits.shape, generator=generator, dtype=torch.float64)
    return logits - (-uniform.log()).log()


def best_assignment(scores: Tensor, support: Tensor) -> Tensor:
    """Index into ``support`` of the best assignment under each matrix of scores, (num_draws,)."""
    n = scores.shape[-2]
    totals = sum(scores[:, i, :][:, support[:, i]] for i in range(n))
    return totals.argmax(-1)


def optimal_prices(scores: Tensor, assignment: Tensor, capacity: int) -> Tensor:
    """Shadow prices: distance of each expert to expert 0 (tight) or to the nearest free slot, (num_draws, k)."""
    k = scores.shape[-1]
    loads = torch.bincount(assignment, minlength=k)
    own = scores.gather(-1, assignment.expand(scores.shape[0], -1).unsqueeze(-1))
    gaps = own - scores
    cost = torch.full((scores.shape[0], k, k), torch.inf, dtype=scores.dtype)
    for a in range(k):
        if loads[a]:
            cost[:, a] = gaps[:, assignment == a].amin(1)
        if loads[a] < capacity:
            cost[:, a] = cost[:, a].clamp(max=0.0)
        cost[:, a, a] = 0.0
    for via in range(k):
        cost = torch.minimum(cost, cost[:, :, via, None] + cost[:, via, None, :])
    roots = torch.tensor([0]) if (loads == capacity).all() else (loads < capacity).nonzero().squeeze(-1)
    return cost[:, :, roots].amin(-1)
