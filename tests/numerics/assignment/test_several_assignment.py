"""`solve_assignment` with several experts per datapoint: a linear program as the truth, and its own certificate."""

import numpy as np
import pytest
import scipy.sparse as sparse
import torch
from scipy.optimize import linprog

from prob_moe.numerics import shortest_distances, solve_assignment


def optimum(scores, capacity, m):
    """The value of the linear program, whose corners are integral; None where it is infeasible."""
    n, k = scores.shape
    allowed = np.isfinite(scores)
    rows = sparse.kron(sparse.eye(n), np.ones((1, k))).tocsr()
    columns = sparse.kron(np.ones((1, n)), sparse.eye(k)).tocsr()
    bounds = [(0, float(a)) for a in allowed.ravel()]
    cost = -np.where(allowed, scores, 0.0).ravel()
    found = linprog(cost, A_eq=rows, b_eq=np.full(n, m), A_ub=columns, b_ub=np.full(k, capacity), bounds=bounds)
    return None if found.status == 2 else -found.fun


def problem(seed):
    """Small problems of all kinds: scales, ties, equal rows, forbidden pairs, tight, slack and too small capacity."""
    generator = np.random.default_rng(seed)
    n, k = generator.integers(1, 13), generator.integers(1, 7)
    m = int(generator.integers(1, k + 1))
    capacity = int(max(1, -(-n * m // k) + generator.integers(-(generator.random() < 0.1), 4)))
    scores = generator.standard_normal((n, k)) * 10.0 ** generator.integers(-3, 4)
    kind = generator.integers(4)
    if kind == 1:
        scores = scores.round()
    elif kind == 2:
        scores = generator.integers(-2, 3, (n, k)).astype(float)
    elif kind == 3:
        scores = scores[generator.integers(0, 2, n) % n]
    if generator.random() < 0.4:
        scores[generator.random((n, k)) < 0.3] = -np.inf
    return scores, capacity, m


def total(scores, assignment):
    present = assignment >= 0
    return scores.double().gather(-1, assignment.clamp(min=0).mT).masked_fill(~present.mT, 0.0).sum().item()


def assert_optimal(scores, capacity, m):
    matching = solve_assignment(torch.from_numpy(scores), capacity, num_selected=m)
    z = matching.assignment
    assert z.shape == (m, scores.shape[0])
    assert (z.diff(dim=0) > 0).all()
    assert z.flatten().bincount().max() <= capacity
    size = np.abs(scores[np.isfinite(scores)]).max() * scores.shape[0]
    assert total(torch.from_numpy(scores), z) == pytest.approx(optimum(scores, capacity, m), abs=1e-9 * (1 + size))
    # No chain of exchanges gains anything, and prices are what it costs to move a place.
    walks = matching.exchange_costs
    for _ in range(scores.shape[1].bit_length()):
        walks = (walks.unsqueeze(-1) + walks.unsqueeze(-3)).amin(-2)
    assert walks.diagonal().min() >= -1e-9 * (1 + size)
    torch.testing.assert_close(matching.distances, shortest_distances(matching.exchange_costs))


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_value_equals_a_linear_program(first):
    for seed in range(first, first + 50):
        scores, capacity, m = problem(seed)
        if optimum(scores, capacity, m) is None:
            with pytest.raises(ValueError, match=r"too small|no assignment"):
                solve_assignment(torch.from_numpy(scores), capacity, num_selected=m)
        else:
            assert_optimal(scores, capacity, m)


@pytest.mark.parametrize("bias", [0.0, 20.0])
@pytest.mark.parametrize("slack", [0, 7])
def test_larger_problems(bias, slack):
    scores = np.random.default_rng(0).standard_normal((160, 12))
    scores[:, 0] += bias
    assert_optimal(scores, 40 + slack, 3)


def test_prices_are_the_loss_of_a_slot():
    """With slots free, price a is what the total loses when a datapoint has to take one slot of expert a."""
    scores, capacity = np.random.default_rng(1).standard_normal((12, 4)), 7
    scores += np.array([2.0, 1.0, 0.0, 0.0])
    matching = solve_assignment(torch.from_numpy(scores), capacity, num_selected=2)
    for a in range(4):
        blocked = np.full((1, 5), -np.inf)  # a row that takes a and an expert of its own
        blocked[0, [a, 4]] = 0.0
        larger = np.vstack([np.hstack([scores, np.full((12, 1), -np.inf)]), blocked])
        loss = optimum(scores, capacity, 2) - optimum(larger, capacity, 2)
        assert matching.prices[a].item() == pytest.approx(loss, abs=1e-9)


def test_one_expert_has_the_same_answer_in_a_form_of_its_own():
    scores = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    one, none = solve_assignment(scores, 6, num_selected=1), solve_assignment(scores, 6)
    assert torch.equal(one.assignment.squeeze(-2), none.assignment)
    assert torch.equal(one.prices, none.prices)


def test_batches_masks_and_capacities():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 20, 5, generator=generator)
    mask = torch.rand(3, 20, generator=generator) < 0.7
    capacity = torch.tensor([8, 9, 20])
    matching = solve_assignment(scores, capacity, num_selected=2, mask=mask)
    assert (matching.assignment[~mask.unsqueeze(-2).expand(3, 2, 20)] == -1).all()
    for b in range(3):
        kept = scores[b, mask[b]]
        alone = solve_assignment(kept, int(capacity[b]), num_selected=2)
        assert total(kept, alone.assignment) == pytest.approx(total(kept, matching.assignment[b][:, mask[b]]))
    assert solve_assignment(scores[:0], 8, num_selected=2).assignment.shape == (0, 2, 20)
    assert solve_assignment(scores[:, :0], 8, num_selected=2).assignment.shape == (3, 2, 0)


def test_all_experts():
    z = solve_assignment(torch.randn(4, 3), 4, num_selected=3).assignment
    assert torch.equal(z, torch.arange(3).unsqueeze(-1).expand(3, 4))


@pytest.mark.parametrize("m", [0, -1, 4, 2.0, True])
def test_number_of_experts(m):
    with pytest.raises(ValueError, match="num_selected must be an int from 1 to k = 3"):
        solve_assignment(torch.zeros(4, 3), 4, num_selected=m)


def test_too_small_capacity_counts_all_selected():
    with pytest.raises(ValueError, match=r"capacity=2 is too small.* 2 for each"):
        solve_assignment(torch.zeros(4, 3), 2, num_selected=2)
    mask = torch.tensor([True, True, True, True, False])
    with pytest.raises(ValueError, match="too small"):
        solve_assignment(torch.zeros(5, 3), 2, num_selected=2, mask=mask)
