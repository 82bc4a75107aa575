"""The exchange graph of an assignment: what it costs to move rows between experts, directly and along chains.

An edge a → b costs the least loss for which some datapoint moves from expert a to expert b; a free slot is a datapoint
of score 0 everywhere. At an optimal assignment no cycle is negative, and shortest distances to a root are optimal dual
prices (Ahuja, Magnanti & Orlin 1993, §9.2).
"""

import numpy as np
import torch

from prob_moe._transforms import without_derivative
from prob_moe.numerics._capacity import capacity_of_problems
from prob_moe.numerics._compiled import leaves_torch
from prob_moe.numerics.assignment._distances import price_all, relax_all


def exchange_costs(scores: torch.Tensor, assignment: torch.Tensor, capacity: int | torch.Tensor) -> torch.Tensor:
    r"""Cheapest direct move between every two experts.

    .. math:: W_{ab} = \min_{i: z_i = a} (S_{ia} - S_{ib}),

    0 on the diagonal, at most 0 where expert a has a free slot, and +inf where no datapoint at a may move to b.

    :param scores: (\*batch, n, k) float, -inf where forbidden.
    :param assignment: (\*batch, n) long; a negative entry is absent and takes no slot.
    :param capacity: slots per expert, an int or a long tensor (\*batch).
    :returns: (\*batch, k, k) float64.
    :raises ValueError: if the shapes do not match.

    >>> exchange_costs(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 1]), 1)
    tensor([[0., 1.],
            [3., 0.]], dtype=torch.float64)
    """
    if scores.dim() < 2 or assignment.shape != scores.shape[:-1]:
        raise ValueError(
            f"assignment must have the shape of scores without its last dimension, {tuple(scores.shape[:-1])}, "
            f"but has shape {tuple(assignment.shape)}"
        )
    k = scores.shape[-1]
    present = assignment >= 0
    home = assignment.clamp(min=0)
    scores = scores.detach().double()
    moves = scores.gather(-1, home.unsqueeze(-1)) - scores
    moves = moves.masked_fill(~present.unsqueeze(-1), torch.inf)
    costs = moves.new_full((*scores.shape[:-2], k, k), torch.inf)
    costs.scatter_reduce_(-2, home.unsqueeze(-1).expand_as(moves), moves, "amin")
    loads = home.new_zeros(costs.shape[:-1]).scatter_add_(-1, home, present.long())
    has_slot = loads < capacity_of_problems(capacity, loads.shape[:-1], loads.device).unsqueeze(-1)
    costs = torch.where(has_slot.unsqueeze(-1), costs.clamp(max=0.0), costs)
    return costs.masked_fill(torch.eye(k, dtype=torch.bool, device=costs.device), 0.0)


@leaves_torch
@without_derivative
def shortest_distances(costs: torch.Tensor) -> torch.Tensor:
    r"""All-pairs shortest paths of the exchange graph, by Floyd and Warshall in O(k³).

    At an optimal assignment there are no negative cycles; what rounding leaves of one on the diagonal is set to 0.

    :param costs: (\*batch, k, k), +inf where there is no edge.
    :returns: (\*batch, k, k) float64 distances D, 0 on the diagonal, +inf where b cannot be reached from a.
    :raises ValueError: if ``costs`` is not a batch of square matrices.

    >>> shortest_distances(torch.tensor([[0.0, 1.0, 9.0], [2.0, 0.0, 1.0], [torch.inf, torch.inf, 0.0]]))[0]
    tensor([0., 1., 2.], dtype=torch.float64)
    """
    if costs.dim() < 2 or costs.shape[-1] != costs.shape[-2]:
        raise ValueError(f"costs must have shape (*batch, k, k), but has shape {tuple(costs.shape)}")
    distances = costs.detach().to("cpu", torch.float64, copy=True, memory_format=torch.contiguous_format)
    k = distances.shape[-1]
    relax_all(distances.view(-1, k, k).numpy() if distances.numel() else np.empty((0, k, k)))
    return distances.to(costs.device)


@leaves_torch
@without_derivative
def shadow_prices(distances: torch.Tensor, loads: torch.Tensor, capacity: int | torch.Tensor) -> torch.Tensor:
    r"""Canonical optimal prices: how much the total score falls if an expert loses one slot.

    Where slots stay free, v_a = min over experts b with a free slot of D[a, b]: 0 for those, and never negative.
    Otherwise v_a = D[a, 0]: expert 0 is the root, and prices are relative to it.

    Forbidden pairs can split the experts into groups that cannot exchange rows in both directions (strongly connected
    components). Prices of different groups cannot be compared then: each group without a free slot has a root of its
    own, its first expert, with price 0.

    :param distances: (\*batch, k, k) from :func:`shortest_distances`.
    :param loads: (\*batch, k) rows at each expert.
    :param capacity: slots per expert, an int or a long tensor (\*batch).
    :returns: (\*batch, k) float64.
    :raises ValueError: if the shapes do not match.

    >>> shadow_prices(torch.tensor([[0.0, 1.0], [3.0, 0.0]]), torch.tensor([1, 1]), 1)
    tensor([0., 3.], dtype=torch.float64)
    """
    if distances.dim() < 2 or loads.shape != distances.shape[:-1]:
        raise ValueError(
            f"loads must have the shape of distances without its last dimension, {tuple(distances.shape[:-1])}, "
            f"but has shape {tuple(loads.shape)}"
        )
    k = distances.shape[-1]
    graphs = distances.detach().to("cpu", torch.float64).reshape(-1, k, k).contiguous().numpy()
    prices = torch.empty(loads.shape, dtype=torch.float64)
    slots = capacity_of_problems(capacity, loads.shape[:-1]).unsqueeze(-1).expand(loads.shape)
    filled, places = (value.detach().cpu().reshape(-1, k).contiguous().numpy() for value in (loads, slots))
    price_all(graphs, filled, places, prices.view(-1, k).numpy())
    return prices.to(distances.device)
