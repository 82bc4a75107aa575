"""Marginals of several experts per datapoint: a general optimiser, the optimality conditions and the dual as truths."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, linprog, minimize

from prob_moe.numerics import minimum_variance_marginals
from tests.numerics.rounding.test_marginals import router, second_moment


def assert_feasible(r, capacity, m, tolerance=1e-12):
    assert (r >= 0).all()
    assert (r <= 1 + tolerance).all()
    assert (r.sum(-1) <= m + tolerance).all()
    assert (r.sum(-2) <= capacity * (1 + tolerance)).all()


def assert_full(r, m):
    torch.testing.assert_close(r.sum(-1), torch.full(r.shape[:-1], float(m), dtype=r.dtype), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("n", "k", "c", "m", "scale", "bias"),
    [
        (4, 3, 3, 2, 1, 1),
        (4, 3, 4, 2, 1, 2),
        (6, 3, 4, 2, 2, 1),
        (5, 4, 4, 3, 1, 2),
        (3, 4, 2, 2, 1, 1),
        (6, 4, 3, 2, 4, 2),
    ],
)
def test_optimum_of_a_general_optimiser(n, k, c, m, scale, bias):
    logits = router(n, k, scale, bias, seed=n)
    p = logits.softmax(-1).numpy()
    rows, columns = np.kron(np.eye(n), np.ones(k)), np.kron(np.ones(n), np.eye(k))
    found = minimize(
        lambda r: (p.ravel() ** 2 / r).sum(),
        np.full(n * k, m / k),
        jac=lambda r: -(p.ravel() ** 2) / r**2,
        bounds=[(1e-9, 1.0)] * (n * k),
        constraints=[LinearConstraint(rows, m, m), LinearConstraint(columns, -np.inf, np.full(k, c))],
        method="SLSQP",
        options={"maxiter": 2000, "ftol": 1e-13},
    )
    assert found.status in (0, 8)  # 8: no further descent within rounding
    result = minimum_variance_marginals(logits, c, num_selected=m)
    assert_full(result.marginals, m)
    assert result.objective.item() == pytest.approx(found.fun, rel=1e-6)
    visible = p > 3e-2  # the objective is flat in the others
    np.testing.assert_allclose(result.marginals.numpy()[visible], found.x.reshape(n, k)[visible], atol=3e-3)


@pytest.mark.parametrize("factor", [1.0, 1.25])
@pytest.mark.parametrize(("scale", "bias"), [(0, 1), (1, 1), (3, 3), (10, 1), (40, 5), (100, 1)])
@pytest.mark.parametrize(("n", "k", "m"), [(60, 4, 2), (512, 16, 2), (500, 24, 5)])
def test_optimality_conditions(n, k, m, scale, bias, factor):
    logits = router(n, k, scale, bias, seed=1)
    c = math.ceil(factor * n * m / k)
    result = minimum_variance_marginals(logits, c, num_selected=m, tolerance=1e-10)
    p, r = logits.softmax(-1), result.marginals
    alpha, beta = result.datapoint_prices, result.expert_prices
    assert_feasible(r, c, m)
    assert_full(r, m)
    assert (r[p > 0] > 0).all()
    assert (beta >= 0).all()
    # Weak duality, computed here: min over 0 < r <= 1 of p²/r + s r, added up.
    price = alpha.unsqueeze(-1) + beta
    least = torch.where(price > p * p, 2 * p * price.clamp(min=0).sqrt(), p * p + price)
    value, dual = second_moment(p, r), least.sum() - m * alpha.sum() - c * beta.sum()
    torch.testing.assert_close(result.objective, value)
    assert (value - dual).item() <= 1e-7 * value
    assert result.gap.item() == pytest.approx((value - dual).item(), abs=1e-7 * value.item())
    assert (beta * (c - r.sum(0))).abs().max() <= 1e-7 * value
    # r = p / sqrt(max(α + β, p²)) where the objective can tell.
    told = (p / r > 1e-2) & (p > 1e-3)
    torch.testing.assert_close(r[told], (p / price.clamp(min=0).sqrt().maximum(p))[told], rtol=0, atol=3e-3)


def test_prices_of_rows_may_be_negative_and_full_rows_are_not_the_same_as_at_most_m():
    """Where "at most m" would leave the first row at 1.28 experts, all rows are full."""
    p = torch.tensor([[0.9, 0.05, 0.05], [0.05, 0.475, 0.475], [0.05, 0.475, 0.475]], dtype=torch.float64)
    result = minimum_variance_marginals(p.log(), 2, num_selected=2)
    assert_full(result.marginals, 2)
    assert (result.datapoint_prices < 0).any()
    # By hand, with the symmetries of the problem: experts 1 and 2 take x from the first row and y from the others.
    x = np.linspace(0.5, 0.9999, 200_001)  # row 0: (2 − 2x, x, x); rows 1, 2: (2 − 2y, y, y) with y = (2 − x) / 2
    y = (2 - x) / 2
    by_hand = 0.81 / (2 - 2 * x) + 2 * 0.0025 / x + 2 * (0.0025 / (2 - 2 * y) + 2 * 0.475**2 / y)
    assert result.objective.item() == pytest.approx(by_hand[2 - 2 * x <= 1].min(), rel=1e-6)


def test_without_capacity_every_row_by_itself():
    logits = router(40, 6, 3.0, 1.0)
    for m in range(1, 7):
        result = minimum_variance_marginals(logits, None, num_selected=m)
        p, r = logits.softmax(-1), result.marginals
        assert_full(r, m)
        alpha = result.datapoint_prices.unsqueeze(-1)
        torch.testing.assert_close(r, (p / alpha.sqrt()).clamp(max=1.0), rtol=1e-12, atol=0)
        ample = minimum_variance_marginals(logits, 40, num_selected=m)
        torch.testing.assert_close(r, ample.marginals)
    torch.testing.assert_close(minimum_variance_marginals(logits, None).marginals, logits.softmax(-1))


def test_saturated_float32_routers_without_capacity():
    """Summed from the small end: 1 − p_a would be 0 or 6e-8."""
    logits = torch.tensor([[40.0, 0.0, -40.0, 1.0], [0.0, 0.0, 80.0, 0.0]])
    r = minimum_variance_marginals(logits, None, num_selected=2).marginals
    odds = torch.tensor([1.0, math.exp(-40), math.e], dtype=torch.float64)
    torch.testing.assert_close(r[0, [1, 2, 3]].double(), odds / odds.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(r[1], torch.tensor([1 / 3, 1 / 3, 1.0, 1 / 3]))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 12), k=st.integers(2, 6), slack=st.integers(-2, 3), scale=st.floats(0, 40),
    seed=st.integers(0, 2**31), data=st.data(),
)  # fmt: skip
def test_the_dual_certifies_the_optimum_whatever_the_problem(n, k, slack, scale, seed, data):
    m = data.draw(st.integers(1, k))
    c = max(1, -(-n * m // k) + slack)
    logits = router(n, k, scale, 1.0, seed=seed)
    forbidden = torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) < data.draw(st.sampled_from([0.0, 0.3]))
    forbidden[:, 0] = False
    logits = logits.masked_fill(forbidden, -torch.inf)
    result = minimum_variance_marginals(logits, c, num_selected=m)
    r = result.marginals
    assert_feasible(r, c, m)
    assert (r[forbidden] == 0).all()
    assert (r[~forbidden] > 0).all()
    assert result.gap.item() <= 1e-5 * result.objective.item()
    picks = (~forbidden).sum(-1).clamp(max=m).double()
    if m > 1 and can_be_full(~forbidden, picks.numpy(), c):
        torch.testing.assert_close(r.sum(-1), picks, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["plain", "rounded", "one favourite", "few rows", "forbidden", "absent rows"])
def test_a_loose_tolerance_holds_for_routers_of_all_kinds(kind):
    """Two ways lead there, each with a curvature that sharp routers can turn into zeros; the gap is honest for both."""
    generator = torch.Generator().manual_seed(7)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    excesses = []
    for _ in range(100):
        n, k, b = draw(1, 50), draw(2, 10), draw(1, 3)
        m = draw(2, k + 1)
        scale = 10 ** float(5 * torch.rand((), generator=generator) - 2)
        logits = scale * torch.randn(b, n, k, generator=generator, dtype=torch.float64)
        mask = torch.ones(b, n, dtype=torch.bool)
        if kind == "rounded":
            logits = logits.round()
        elif kind == "one favourite":
            logits[..., 0] += 50
        elif kind == "few rows":
            logits = logits[:, torch.randint(0, 3, (n,), generator=generator).clamp(max=n - 1)]
        elif kind == "forbidden":
            logits[torch.rand(b, n, k, generator=generator) < 0.2] = -torch.inf
            logits[..., 0] = 0.0
        elif kind == "absent rows":
            mask = torch.rand(b, n, generator=generator) < 0.7
        capacity = torch.tensor([max(1, -(-n * m // k) + draw(-1, 5)) for _ in range(b)])
        options = {"num_selected": m, "mask": mask}
        loose = minimum_variance_marginals(logits, capacity, tolerance=1e-3, **options)
        strict = minimum_variance_marginals(logits, capacity, tolerance=1e-9, **options)
        r, p = loose.marginals, logits.softmax(-1) * mask.unsqueeze(-1)
        assert_feasible(r, capacity.double().unsqueeze(-1), m)
        assert (r[p > 1e-140] > 0).all()
        enough = mask.sum(-1) * m <= k * capacity
        if kind != "forbidden" and bool(enough.any()):
            assert_full(r[enough][mask[enough]], m)
        assert (loose.objective - loose.gap <= strict.objective * (1 + 1e-6)).all()
        excesses += (loose.objective / strict.objective - 1).tolist()
    assert np.nanquantile(excesses, 0.99) < 2e-3


def can_be_full(allowed, picks, capacity):
    """Whether rows can be full with every allowed entry positive: the least entry maximised by a linear program."""
    n, k = allowed.shape
    entries = allowed.numpy().ravel().astype(float)
    rows = np.c_[np.kron(np.eye(n), np.ones(k)), np.zeros(n)]
    columns = np.c_[np.kron(np.ones(n), np.eye(k)), np.zeros(k)]
    least = np.c_[-np.eye(n * k), entries]  # t <= r_ij where allowed
    found = linprog(
        np.r_[np.zeros(n * k), -1.0],
        A_ub=np.vstack([columns, least]), b_ub=np.r_[np.full(k, capacity), np.zeros(n * k)],
        A_eq=rows, b_eq=picks,
        bounds=[(0.0, e) for e in entries] + [(0.0, 1.0)],
    )  # fmt: skip
    return found.status == 0 and -found.fun > 1e-9


def test_where_not_everybody_can_be_full():
    """Twelve places for ten rows of two: everything is used, and what is missing is dropped."""
    result = minimum_variance_marginals(router(10, 4, 1.0, 1.0), 3, num_selected=2)
    assert_feasible(result.marginals, 3, 2)
    assert result.marginals.sum().item() == pytest.approx(12.0, abs=1e-6)
    assert (result.datapoint_prices >= 0).all()


def test_forbidden_experts():
    inf = torch.inf
    one_only = torch.tensor([[0.0, -inf, -inf], [0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    r = minimum_variance_marginals(one_only, 3, num_selected=2).marginals
    torch.testing.assert_close(r.sum(-1), torch.tensor([1.0, 2.0, 2.0, 2.0], dtype=torch.float64))  # all it allows
    # Full rows would force the last row's entry at expert 0 to 0, and its weight to infinity.
    crowded = torch.zeros(4, 3, dtype=torch.float64)
    crowded[:3, 2] = -inf
    r = minimum_variance_marginals(crowded, 3, num_selected=2).marginals
    assert_feasible(r, 3, 2)
    assert (r[crowded > -inf] > 1e-3).all()


@pytest.mark.parametrize("max_steps", [1, 3, 6])
@pytest.mark.parametrize("m", [2, 4])
def test_sums_hold_without_convergence(m, max_steps):
    logits = router(200, 8, 5.0, 2.0)
    stopped = minimum_variance_marginals(logits, 25 * m, num_selected=m, max_steps=max_steps)
    assert_feasible(stopped.marginals, 25 * m, m)
    assert_full(stopped.marginals, m)
    best = minimum_variance_marginals(logits, 25 * m, num_selected=m).objective.item()
    assert best <= stopped.objective.item() * (1 + 1e-7)
    assert stopped.objective.item() - stopped.gap.item() <= best * (1 + 1e-7)


def test_batches_masks_capacities_starts_and_dtypes():
    logits = router(30, 5, 2.0, 1.0, batch=(2, 3))
    mask = torch.arange(30) % 4 != 0
    capacity = torch.tensor([[12, 15, 10], [30, 12, 5]])
    result = minimum_variance_marginals(logits, capacity, num_selected=2, mask=mask.expand(2, 3, 30))
    assert result.datapoint_prices.shape == (2, 3, 30)
    assert (result.marginals[..., ~mask, :] == 0).all()
    for place in ((0, 0), (0, 2), (1, 0), (1, 2)):
        alone = minimum_variance_marginals(logits[place][mask], int(capacity[place]), num_selected=2)
        torch.testing.assert_close(result.marginals[place][mask], alone.marginals, rtol=1e-6, atol=1e-9)
    warm = minimum_variance_marginals(logits[0, 0], 12, num_selected=2, initial_prices=torch.full((5,), 9.0))
    cold = minimum_variance_marginals(logits[0, 0], 12, num_selected=2)
    assert warm.objective.item() == pytest.approx(cold.objective.item(), rel=1e-7)
    low = minimum_variance_marginals(logits.float(), 12, num_selected=2)
    assert low.log_marginals.dtype == torch.float32
    assert_feasible(low.marginals, 12, 2, tolerance=1e-5)
    assert minimum_variance_marginals(logits[:0], 12, num_selected=2).marginals.shape == (0, 3, 30, 5)


@pytest.mark.parametrize("m", [0, 4, 1.5, True])
def test_number_of_experts(m):
    with pytest.raises(ValueError, match="num_selected must be an int from 1 to k = 3"):
        minimum_variance_marginals(torch.zeros(4, 3), 4, num_selected=m)
