"""Shortest paths and shadow prices of exchange graphs against networkx and against components by hand."""

import networkx as nx
import pytest
import torch

from prob_moe.numerics import shadow_prices, shortest_distances, solve_assignment


def test_distances_equal_networkx_on_a_batch_of_solved_problems():
    costs = solve_assignment(torch.randn(3, 30, 6, dtype=torch.float64), 5).exchange_costs
    distances = shortest_distances(costs)
    for b in range(3):
        graph = nx.DiGraph()
        graph.add_weighted_edges_from((i, j, costs[b, i, j].item()) for i in range(6) for j in range(6) if i != j)
        expected = dict(nx.all_pairs_bellman_ford_path_length(graph))
        for i in range(6):
            for j in range(6):
                assert distances[b, i, j].item() == pytest.approx(expected[i][j], abs=1e-12)


def test_rounding_cycles_leave_a_zero_diagonal():
    costs = torch.tensor([[0.0, 1.0], [-1.0 - 1e-13, 0.0]], dtype=torch.float64)
    assert shortest_distances(costs).diagonal().eq(0).all()


def test_components_have_their_own_roots():
    """Experts {0, 2} and {1, 3} exchange within themselves; 0 -> 1 is one way and joins nothing."""
    inf = torch.inf
    costs = torch.tensor([[0.0, 7.0, 2.0, inf], [inf, 0.0, inf, 4.0], [1.0, inf, 0.0, inf], [inf, 5.0, inf, 0.0]])
    distances = shortest_distances(costs)
    full = torch.full((4,), 2)
    assert shadow_prices(distances, full, 2).tolist() == [0.0, 0.0, 1.0, 5.0]


def test_prices_of_components_beside_free_slots():
    """Expert 2 has a free slot, expert 0 can reach it; 1 cannot and is its own root."""
    inf = torch.inf
    costs = torch.tensor([[0.0, inf, 3.0], [inf, 0.0, inf], [0.0, inf, 0.0]])
    assert shadow_prices(shortest_distances(costs), torch.tensor([2, 2, 1]), 2).tolist() == [3.0, 0.0, 0.0]
