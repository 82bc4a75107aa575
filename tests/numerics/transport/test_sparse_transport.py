"""Sparse plans: a general optimiser, POT, enumeration of supports, optimality conditions and finite differences."""

import itertools

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize

from prob_moe.numerics import solve_assignment, sparse_transport, transport_rows


def similarities(n, k, *batch, scale=1.0):
    return (scale * torch.randn(*batch, n, k, dtype=torch.float64) + torch.linspace(0, 1, k)).softmax(-1)


def primal(p, plan, regularization):
    return (p * plan).sum() - regularization / 2 * plan.square().sum()


def general_optimum(p, regularization, support=None):
    """The plan by a general optimiser for quadratic problems with linear constraints."""
    n, k = p.shape
    equalities = np.vstack([np.kron(np.eye(n), np.ones(k)), np.kron(np.ones(n), np.eye(k))])[:-1]
    upper = np.ones(n * k) if support is None else support.ravel().astype(float)
    found = minimize(
        lambda t: regularization / 2 * t @ t - p.ravel() @ t,
        np.full(n * k, 1 / k),
        jac=lambda t: regularization * t - p.ravel(),
        bounds=list(zip(np.zeros(n * k), upper)),
        constraints=LinearConstraint(equalities, *[np.r_[np.ones(n), np.full(k - 1, n / k)]] * 2),
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-15},
    )
    return found.x.reshape(n, k), -found.fun, found.success


@pytest.mark.parametrize("regularization", [1.0, 0.2])
@pytest.mark.parametrize(("n", "k"), [(6, 2), (7, 3), (3, 4)])
def test_dense_plan_is_that_of_a_general_optimiser(n, k, regularization):
    p = similarities(n, k, scale=2.0)
    result = sparse_transport(p, k, regularization=regularization)
    plan, value, _ = general_optimum(p.numpy(), regularization)
    np.testing.assert_allclose(result.plan.numpy(), plan, atol=1e-6)
    assert primal(p, result.plan, regularization).item() == pytest.approx(value, abs=1e-9)


@pytest.mark.filterwarnings("ignore:scipy.optimize.*disp:DeprecationWarning")  # POT's
@pytest.mark.parametrize("regularization", [1.0, 0.05])
@pytest.mark.parametrize(("n", "k"), [(60, 4), (100, 7)])
def test_dense_plan_is_that_of_another_solver(n, k, regularization):
    p = similarities(n, k)
    result = sparse_transport(p, k, regularization=regularization)
    plan = ot.smooth.smooth_ot_semi_dual(
        np.full(k, n / k), np.ones(n), -p.T.numpy(), regularization, "l2", numItermax=10_000, stopThr=1e-14
    )
    np.testing.assert_allclose(result.plan.numpy(), plan.T, atol=1e-5)
    assert result.imbalance < 1e-12


@pytest.mark.parametrize(("m", "regularization"), [(1, 1.0), (2, 0.1), (2, 1.0), (3, 0.3), (4, 1.0)])
def test_optimality_conditions(m, regularization):
    """Every row solves its problem at the prices, over all supports; no gap where the experts' sums are met."""
    p = similarities(32, 4, 2)
    result = sparse_transport(p, m, regularization=regularization)
    assert ((result.plan > 0).sum(-1) <= m).all()
    torch.testing.assert_close(result.plan.sum(-1), torch.ones(2, 32, dtype=torch.float64))
    reduced = p - result.prices.unsqueeze(-2)

    def value(row, t):
        return (row * t).sum(-1) - regularization / 2 * t.square().sum(-1)

    best = torch.full((2, 32), -torch.inf, dtype=torch.float64)
    for support in itertools.combinations(range(4), m):
        corners = torch.eye(4, dtype=torch.float64)[list(support)]
        for _ in range(50):
            t = torch.distributions.Dirichlet(torch.full((m,), 0.5, dtype=torch.float64)).sample((2, 32)) @ corners
            best = torch.maximum(best, value(reduced, t))
    ours = value(reduced, result.plan)
    assert (ours >= best - 1e-12).all()
    dual = ours.sum(-1) + 8 * result.prices.sum(-1)
    for b in range(2):
        if result.imbalance[b] < 1e-9:
            assert primal(p[b], result.plan[b], regularization).item() == pytest.approx(dual[b].item(), abs=1e-8)
    # No other prices give a smaller dual value: it is minimal, ties or not.
    for direction in torch.randn(30, 2, 4, dtype=torch.float64) * 0.01:
        moved = p - (result.prices + direction).unsqueeze(-2)
        plan = sparse_rows(moved / regularization, m)
        other = value(moved, plan).sum(-1) + 8 * (result.prices + direction).sum(-1)
        assert (other >= dual - 1e-9).all()


def sparse_rows(points, m):
    """Projection onto the sparse simplex by bisection on the threshold."""
    kept = torch.where(points >= points.topk(m).values[..., -1:], points, -torch.inf)
    low, high = points.amax(-1, keepdim=True) - 1, points.amax(-1, keepdim=True)
    for _ in range(60):
        middle = (low + high) / 2
        above = (kept - middle).clamp(min=0).sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (kept - low).clamp(min=0)


def test_sparse_plan_is_the_best_over_all_supports():
    """Four datapoints, three experts, two non-zeros each: 81 supports, each a quadratic problem."""
    found = 0
    for _ in range(10):
        p = similarities(4, 3, scale=2.0)
        result = sparse_transport(p, 2, regularization=0.5)
        pairs = [[0, 1], [0, 2], [1, 2]]
        values = []
        for choice in itertools.product(pairs, repeat=4):
            support = np.zeros((4, 3), bool)
            for i, pair in enumerate(choice):
                support[i, pair] = True
            _, value, success = general_optimum(p.numpy(), 0.5, support)
            values.append(value if success else -np.inf)
        # Weak duality for all; where the sums are met, the plan is the optimum of the non-convex problem.
        reduced = p - result.prices.unsqueeze(-2)
        dual = (reduced * result.plan).sum() - 0.25 * result.plan.square().sum() + 4 / 3 * result.prices.sum()
        assert max(values) <= dual.item() + 1e-8
        if result.imbalance < 1e-9:
            found += 1
            assert primal(p, result.plan, 0.5).item() == pytest.approx(max(values), abs=1e-7)
        if found == 2:
            break
    assert found


@pytest.mark.parametrize(("n", "k"), [(12, 3), (64, 8)])
def test_one_nonzero_is_the_balanced_matching(n, k):
    p = similarities(n, k, 2)
    result = sparse_transport(p, 1)
    assert torch.equal(result.plan.argmax(-1), solve_assignment(p, n // k).assignment)
    assert (result.imbalance == 0).all()


@pytest.mark.parametrize(("m", "regularization"), [(4, 1.0), (4, 0.1), (2, 0.1), (3, 0.1)])
def test_gradient_is_the_derivative_of_the_plan(m, regularization):
    def plan(p):
        return sparse_transport(p, m, regularization=regularization).plan

    for _ in range(100):  # a problem whose sums are met, as the gradient asks for, and datapoints that share experts
        p = similarities(8, 4)
        result = sparse_transport(p, m, regularization=regularization)
        mixed = ((result.plan > 0.02) & (result.plan < 0.98)).any(-1)
        if result.imbalance < 1e-12 and mixed.sum() > 2:
            break
    else:
        pytest.fail("no such problem among 100")
    p.requires_grad_()
    probe = torch.randn(8, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: (plan(p) * probe).sum(), p, eps=1e-6, atol=1e-6)
    # The prices react: with fixed prices rows would not depend on each other.
    jacobian = torch.autograd.functional.jacobian(plan, p).abs().amax((1, 3))
    assert jacobian.fill_diagonal_(0).max() > 1e-2


def test_padding_equals_removed_rows():
    p = similarities(20, 4)
    mask = torch.arange(20) % 3 != 0
    masked, removed = sparse_transport(p, 4, mask=mask), sparse_transport(p[mask], 4)
    torch.testing.assert_close(masked.plan[mask], removed.plan)
    assert (masked.plan[~mask] == 0).all()
    assert (sparse_transport(p, 2, mask=torch.zeros(20, dtype=torch.bool)).plan == 0).all()


def test_batches_and_dtypes():
    p = similarities(10, 3, 2, 2)
    result = sparse_transport(p, 3)
    assert result.prices.shape == (2, 2, 3)
    assert result.imbalance.shape == (2, 2)
    torch.testing.assert_close(result.plan[1, 0], sparse_transport(p[1, 0], 3).plan)
    assert sparse_transport(p.bfloat16(), 2).plan.dtype == torch.bfloat16
    assert sparse_transport(p[:0], 2).plan.shape == (0, 2, 10, 3)
    assert sparse_transport(p[..., :0, :], 2).plan.shape == (2, 2, 0, 3)


def test_capped_iterations_still_give_rows_that_sum_to_one():
    p = similarities(100, 8, scale=4.0)
    stopped = sparse_transport(p, 3, max_iterations=1)
    torch.testing.assert_close(stopped.plan.sum(-1), torch.ones(100, dtype=torch.float64))
    assert stopped.imbalance > sparse_transport(p, 3).imbalance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_nonzeros": 0}, "max_nonzeros must be an int from 1 to k = 3, but is 0"),
        ({"max_nonzeros": 4}, "max_nonzeros must be an int from 1 to k = 3, but is 4"),
        ({"max_nonzeros": 2, "regularization": 0.0}, "regularization must be positive and finite, but is 0.0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        sparse_transport(torch.zeros(5, 3), **options)


def test_where_the_limit_binds_the_sums_are_met_to_a_datapoint():
    """The documented cases: the limit binds at large γ, hardly at small γ, never at m = k."""
    p = similarities(64, 8, 20, scale=2.0)
    binding = sparse_transport(p, 2, regularization=1.0).imbalance
    assert (binding > 1e-3).double().mean() > 0.9
    assert binding.max() < 2
    free = sparse_transport(p, 4, regularization=0.01).imbalance
    assert (free < 1e-9).double().mean() > 0.9
    assert sparse_transport(p, 8).imbalance.max() < 1e-9


@pytest.mark.parametrize(("m", "regularization"), [(4, 1.0), (2, 0.1), (3, 0.3)])
def test_rows_at_the_prices_of_a_plan_are_the_plan_and_have_its_gradient(m, regularization):
    p = similarities(12, 4, 2).requires_grad_()
    mask = torch.arange(12) < torch.tensor([[12], [8]])
    result = sparse_transport(p, m, regularization=regularization, mask=mask)
    allowed = (result.plan > 0) | ~mask.unsqueeze(-1)
    rows = transport_rows(p, result.prices, allowed, regularization=regularization, mask=mask)
    torch.testing.assert_close(rows, result.plan)
    probe = torch.randn_like(rows)
    ours, expected = (
        torch.autograd.grad((part * probe).sum(), p, retain_graph=True)[0] for part in (rows, result.plan)
    )
    torch.testing.assert_close(ours, expected)


def test_gradient_of_rows_in_similarity_and_prices():
    p, prices = similarities(6, 3).requires_grad_(), torch.randn(3, dtype=torch.float64).mul(0.1).requires_grad_()
    allowed = torch.tensor([[True, True, False], [True, False, True]]).repeat(3, 1)
    rows = transport_rows(p, prices, allowed, regularization=2.0)
    assert bool((rows[~allowed] == 0).all())
    torch.testing.assert_close(rows.sum(-1), torch.ones(6, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda p, v: transport_rows(p, v, allowed, regularization=2.0), (p, prices))
