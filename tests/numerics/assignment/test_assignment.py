"""`solve_assignment` against exact peers and against its own certificate."""

import networkx as nx
import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from prob_moe.numerics import exchange_costs, shadow_prices, shortest_distances, solve_assignment
from tests.numerics.cases import cases

CASES = cases()


def total(scores: torch.Tensor, assignment: torch.Tensor) -> float:
    return scores.double().gather(-1, assignment.unsqueeze(-1)).sum().item()


def loads(assignment: torch.Tensor, k: int) -> torch.Tensor:
    return torch.bincount(assignment[assignment >= 0], minlength=k)


def scipy_value(scores: torch.Tensor, capacity: int) -> float:
    """Jonker-Volgenant on the columns, one copy per slot; a forbidden pair costs more than all others together."""
    values = np.repeat(scores.double().numpy(), capacity, axis=1)
    finite = np.isfinite(values)
    penalty = -(np.abs(values[finite]).max(initial=0.0) + 1) * values.shape[0] * 4
    rows, columns = linear_sum_assignment(np.where(finite, values, penalty), maximize=True)
    return values[rows, columns].sum()


def check_optimal(scores: torch.Tensor, capacity: int) -> None:
    matching = solve_assignment(scores, capacity)
    k = scores.shape[-1]
    assert loads(matching.assignment, k).max() <= capacity
    expected = scipy_value(scores, capacity)
    assert total(scores, matching.assignment) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_value_equals_scipy(name):
    check_optimal(*CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_prices_and_exchange_costs_certify_the_optimum(name):
    scores, capacity = CASES[name]
    matching = solve_assignment(scores, capacity)
    rounding = 1e-12 * scores[scores.isfinite()].abs().max()
    load = loads(matching.assignment, scores.shape[-1])

    torch.testing.assert_close(matching.exchange_costs, exchange_costs(scores, matching.assignment, capacity))
    # No cycle gains: two steps of every length up to k, by repeated min-plus squaring.
    walks = matching.exchange_costs
    for _ in range(scores.shape[-1].bit_length()):
        walks = (walks.unsqueeze(-1) + walks.unsqueeze(-3)).amin(-2)
    assert walks.diagonal().min() >= -10 * rounding

    # Prices are feasible within each strongly connected component, and a component with a free slot has price 0 there.
    distances = shortest_distances(matching.exchange_costs)
    together = distances.isfinite() & distances.mT.isfinite()
    surplus = matching.exchange_costs - matching.prices.unsqueeze(-1) + matching.prices
    assert surplus[together].min() >= -10 * rounding
    assert (matching.prices[load < capacity] == 0).all()
    if load.sum() < capacity * scores.shape[-1] and together.all():
        assert matching.prices.min() >= -10 * rounding
    torch.testing.assert_close(matching.prices, shadow_prices(distances, load, capacity))


@pytest.mark.parametrize(("n", "k"), [(1024, 16), (512, 64), (30, 30)])
@pytest.mark.parametrize("skew", [0.0, 100.0])
def test_value_equals_network_simplex(n, k, skew):
    scores = torch.randn(n, k, dtype=torch.float64) * 2
    scores[:, 0] += skew
    plan = ot.emd(np.full(n, 1 / n), np.full(k, 1 / k), -scores.numpy(), numItermax=10_000_000)
    ours = total(scores, solve_assignment(scores, n // k).assignment)
    assert ours == pytest.approx((plan * scores.numpy()).sum() * n, rel=1e-10)


@pytest.mark.parametrize(("n", "k", "capacity"), [(7, 3, 3), (6, 3, 2), (4, 6, 1), (9, 2, 8)])
def test_value_equals_networkx_min_cost_flow(n, k, capacity):
    scores = torch.randint(-50, 50, (n, k))
    graph = nx.DiGraph()
    graph.add_node("sink", demand=n)
    for i in range(n):
        graph.add_node(("row", i), demand=-1)
        for j in range(k):
            graph.add_edge(("row", i), ("expert", j), weight=-int(scores[i, j]), capacity=1)
    for j in range(k):
        graph.add_edge(("expert", j), "sink", weight=0, capacity=capacity)
    best = -nx.cost_of_flow(graph, nx.min_cost_flow(graph))
    assert total(scores, solve_assignment(scores.double(), capacity).assignment) == best


@settings(max_examples=300)
@given(st.data())
def test_value_equals_scipy_on_arbitrary_scores(data):
    n, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    capacity = -(-n // k) + data.draw(st.integers(0, 3))
    entry = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e4, 1e4, width=32), st.just(-np.inf))
    scores = torch.tensor(data.draw(st.lists(st.lists(entry, min_size=k, max_size=k), min_size=n, max_size=n)))
    if np.isfinite(scipy_value(scores, capacity)):
        check_optimal(scores, capacity)
    else:
        with pytest.raises(ValueError, match="no assignment"):
            solve_assignment(scores, capacity)


def test_prices_are_the_loss_of_a_slot():
    """By their definition: with slots free, price a is what the total loses when one slot of expert a is taken away."""
    scores, capacity = torch.randn(12, 3, dtype=torch.float64) + torch.tensor([2.0, 1.0, 0.0]), 5
    matching = solve_assignment(scores, capacity)
    for a in range(3):
        blocked = torch.full((1, 3), -torch.inf, dtype=torch.float64)
        blocked[0, a] = 0.0  # a datapoint that has to take one slot of expert a
        loss = total(scores, matching.assignment) - scipy_value(torch.cat([scores, blocked]), capacity)
        assert matching.prices[a].item() == pytest.approx(loss, abs=1e-12)


def test_exchange_cost_is_the_value_of_a_forced_swap():
    """W of two experts with one datapoint each, by hand."""
    matching = solve_assignment(torch.tensor([[2.0, 1.0], [0.5, 3.0]]), 1)
    assert matching.exchange_costs.tolist() == [[0.0, 1.0], [2.5, 0.0]]
    assert matching.prices.tolist() == [0.0, 2.5]


def test_batch_equals_loop_over_problems():
    scores = torch.randn(3, 2, 40, 5)
    matching = solve_assignment(scores, 9)
    assert matching.assignment.shape == (3, 2, 40)
    for i in range(3):
        for j in range(2):
            single = solve_assignment(scores[i, j], 9)
            for ours, alone in zip(matching, single):
                assert torch.equal(ours[i, j], alone)


def test_mask_equals_leaving_rows_out():
    scores = torch.randn(4, 30, 5)
    mask = torch.rand(4, 30) < 0.6
    mask[0] = False
    matching = solve_assignment(scores, 6, mask=mask)
    assert (matching.assignment[~mask] == -1).all()
    torch.testing.assert_close(matching.exchange_costs, exchange_costs(scores, matching.assignment, 6))
    for i in range(4):
        alone = solve_assignment(scores[i, mask[i]], 6)
        assert total(scores[i, mask[i]], matching.assignment[i, mask[i]]) == pytest.approx(
            total(scores[i, mask[i]], alone.assignment)
        )


def test_masked_rows_may_hold_anything():
    scores = torch.randn(10, 2)
    scores[:4] = torch.nan
    mask = torch.arange(10) >= 4
    assert solve_assignment(scores, 3, mask=mask).assignment[:4].eq(-1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_scores_are_solved_exactly(dtype):
    scores = torch.randn(64, 8).to(dtype)
    matching = solve_assignment(scores, 8)
    assert matching.prices.dtype == torch.float64
    assert total(scores, matching.assignment) == pytest.approx(scipy_value(scores, 8), rel=1e-12)


@pytest.mark.parametrize("layout", ["transposed", "expanded", "requires_grad"])
def test_any_memory_layout(layout):
    scores = torch.randn(8, 48).T
    if layout == "expanded":
        scores = torch.randn(48, 8).expand(3, 48, 8)
    if layout == "requires_grad":
        scores = scores.contiguous().requires_grad_()
    expected = solve_assignment(scores.detach().contiguous(), 6)
    for ours, other in zip(solve_assignment(scores, 6), expected):
        assert torch.equal(ours, other)
        assert not ours.requires_grad


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 0, 6, 3), (0, 3), (4, 0, 3), (0, 0, 3)])
def test_empty_batches_and_no_datapoints(shape):
    matching = solve_assignment(torch.zeros(shape), 2)
    assert matching.assignment.shape == shape[:-1]
    assert matching.exchange_costs.shape == (*shape[:-2], 3, 3)
    assert matching.prices.eq(0).all()
