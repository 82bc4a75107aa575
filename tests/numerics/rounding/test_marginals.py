"""Minimum-variance marginals: a general optimiser, the optimality conditions and skip's exact law as truths."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import LinearConstraint, minimize

from prob_moe.numerics import minimum_variance_marginals, router_marginals


def router(n, k, scale, bias, seed=0, batch=()):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*batch, n, k, generator=generator, dtype=torch.float64)
    return scale * noise + bias * torch.randn(*batch, 1, k, generator=generator, dtype=torch.float64)


def second_moment(p, r):
    return torch.where(p > 0, p * (p / r), 0.0).sum((-2, -1))


def assert_feasible(r, capacity, tolerance=1e-12):
    assert (r >= 0).all()
    assert (r.sum(-1) <= 1 + tolerance).all()
    assert (r.sum(-2) <= capacity * (1 + tolerance)).all()


@pytest.mark.parametrize(
    ("n", "k", "c", "scale", "bias"),
    [(4, 2, 2, 1, 1), (4, 3, 2, 1, 2), (6, 3, 2, 2, 1), (5, 3, 4, 1, 2), (3, 4, 1, 1, 1), (6, 2, 3, 4, 2)],
)
def test_optimum_of_a_general_optimiser(n, k, c, scale, bias):
    logits = router(n, k, scale, bias, seed=n)
    p = logits.softmax(-1).numpy()
    rows = np.kron(np.eye(n), np.ones(k))
    columns = np.kron(np.ones(n), np.eye(k))
    found = minimize(
        lambda r: (p.ravel() ** 2 / r).sum(),
        np.full(n * k, 0.9 * min(1 / k, c / n)),
        jac=lambda r: -(p.ravel() ** 2) / r**2,
        bounds=[(1e-9, 1.0)] * (n * k),
        constraints=LinearConstraint(np.vstack([rows, columns]), -np.inf, np.r_[np.ones(n), np.full(k, c)]),
        method="SLSQP",
        options={"maxiter": 2000, "ftol": 1e-13},
    )
    assert found.status in (0, 8)  # 8: no further descent within rounding
    result = minimum_variance_marginals(logits, c)
    assert result.objective.item() == pytest.approx(found.fun, rel=1e-6)
    assert result.gap.item() <= 1e-5
    visible = p > 1e-2  # the objective is flat in the others
    np.testing.assert_allclose(result.marginals.numpy()[visible], found.x.reshape(n, k)[visible], atol=2e-3)


@pytest.mark.parametrize("factor", [1.0, 1.25])
@pytest.mark.parametrize(("scale", "bias"), [(0, 1), (1, 0), (1, 1), (3, 3), (10, 1), (100, 1)])
@pytest.mark.parametrize(("n", "k"), [(60, 4), (512, 16), (1000, 48)])
def test_optimality_conditions(n, k, scale, bias, factor):
    logits = router(n, k, scale, bias, seed=1)
    c = int(np.ceil(factor * n / k))
    result = minimum_variance_marginals(logits, c, tolerance=1e-11)
    p, r = logits.softmax(-1), result.marginals
    alpha, beta = result.datapoint_prices, result.expert_prices
    assert_feasible(r, c)
    assert (alpha >= 0).all()
    assert (beta >= 0).all()
    # Weak duality, computed here: no feasible marginals lie below the dual value.
    price = (alpha.unsqueeze(-1) + beta).sqrt()
    dual = 2 * (p * price).sum() - alpha.sum() - c * beta.sum()
    value = second_moment(p, r)
    torch.testing.assert_close(result.objective, value)
    assert 0 <= result.gap.item() == pytest.approx((value - dual).item(), abs=1e-9 * n)
    assert result.gap.item() <= 1e-8 * value.item()
    # Complementary slackness, in the units of the objective.
    assert (beta * (c - r.sum(0))).abs().max() <= 1e-7 * value
    assert (alpha * (1 - r.sum(1))).abs().max() <= 1e-7 * value
    # Bounded weights, and nobody is dropped while the router gives everybody some probability.
    visible = p > 1e-3
    assert (p / r)[visible].max() <= (p.sum(0) / c).clamp(min=1).max() + 1 + 1e-6
    if scale <= 10:
        torch.testing.assert_close(r.sum(1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-10)


def test_a_router_that_fits_is_left_alone():
    logits = router(12, 3, 1.0, 0.3)
    result = minimum_variance_marginals(logits, 12)
    torch.testing.assert_close(result.log_marginals, logits.log_softmax(-1), rtol=0, atol=1e-14)
    assert result.objective.item() == pytest.approx(12.0, abs=1e-12)
    assert (result.expert_prices == 0).all()
    torch.testing.assert_close(router_marginals(logits, 12), logits.log_softmax(-1))


def skip_second_moment(p, capacity):
    """Exact Σ_i E[w_i²] of skip: w = kept · max(1, n_j/c), so it is Σ_j E[max(n_j, n_j²/c)], n_j Poisson-binomial."""
    total = 0.0
    for column in p.T:
        law = np.ones(1)
        for q in column:
            law = np.convolve(law, [1 - q, q])
        load = np.arange(law.size)
        total += law @ np.maximum(load, load**2 / capacity)
    return total


@pytest.mark.parametrize(("n", "k", "scale", "bias"), [(256, 8, 1, 0.7), (256, 8, 5, 2), (64, 4, 1, 0), (48, 16, 3, 1)])
@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_second_moment_is_below_that_of_skip_and_of_the_router_marginals(n, k, scale, bias, factor):
    logits = router(n, k, scale, bias, seed=2)
    c = int(np.ceil(factor * n / k))
    p = logits.softmax(-1)
    ours = minimum_variance_marginals(logits, c).objective.item()
    overflow_skipped = router_marginals(logits, c).exp()
    assert_feasible(overflow_skipped, c)
    assert n <= ours + 1e-6 * n
    assert ours <= second_moment(p, overflow_skipped).item() * (1 + 1e-7)
    assert ours < skip_second_moment(p.numpy(), c)


@settings(max_examples=60)
@given(
    n=st.integers(1, 12),
    k=st.integers(1, 5),
    slack=st.integers(0, 3),
    scale=st.floats(0, 6),
    seed=st.integers(0, 2**31),
)
def test_no_feasible_marginals_are_better(n, k, slack, scale, seed):
    c = -(-n // k) + slack
    logits = router(n, k, scale, 1.0, seed=seed)
    p = logits.softmax(-1)
    result = minimum_variance_marginals(logits, c)
    assert_feasible(result.marginals, c)
    assert result.gap.item() <= 1e-6 * result.objective.item()
    other = p * torch.rand(20, n, k, dtype=torch.float64).mul(2).exp()
    near = result.marginals * torch.randn(20, n, k, dtype=torch.float64).mul(0.05).exp()
    for r in (other, near):
        r = r / r.sum(-1, keepdim=True).clamp(min=1)
        r = r / (r.sum(-2, keepdim=True) / c).clamp(min=1)
        assert (second_moment(p, r) >= result.objective * (1 - 1e-7)).all()


def test_identical_rows_one_expert_and_fewer_datapoints_than_experts():
    identical = torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64).expand(9, 3)
    torch.testing.assert_close(
        minimum_variance_marginals(identical, 3).marginals, torch.full((9, 3), 1 / 3, dtype=torch.float64)
    )
    one = minimum_variance_marginals(torch.randn(5, 1, dtype=torch.float64), 5)
    assert (one.marginals == 1).all()
    few = router(3, 8, 5.0, 5.0)
    assert_feasible(minimum_variance_marginals(few, 1).marginals, 1)


def test_forbidden_experts_keep_probability_zero_and_drop_what_does_not_fit():
    logits = torch.tensor([[0.0, -torch.inf]] * 3 + [[0.0, 0.0]], dtype=torch.float64)
    result = minimum_variance_marginals(logits, 2)
    r = result.marginals
    assert (r[:3, 1] == 0).all()
    assert_feasible(r, 2)
    # By hand: the free row gives way to expert 1 as far as its own weights allow; three rows share what remains.
    x = np.linspace(1e-4, 1 - 1e-4, 100_001)
    by_hand = (9 / (2 - x) + 0.25 / x + 0.25 / (1 - x)).min()
    assert result.objective.item() == pytest.approx(by_hand, rel=1e-6)


def test_masked_rows_equal_removed_rows():
    logits = router(20, 4, 2.0, 1.0)
    mask = torch.arange(20) % 3 != 0
    logits[0] = -torch.inf  # an absent row may hold anything
    full, removed = minimum_variance_marginals(logits, 4, mask=mask), minimum_variance_marginals(logits[mask], 4)
    assert (full.marginals[~mask] == 0).all()
    assert (full.datapoint_prices[~mask] == 0).all()
    torch.testing.assert_close(full.marginals[mask], removed.marginals)
    torch.testing.assert_close(
        router_marginals(logits, 4, mask=mask)[mask], router_marginals(logits[mask], 4), rtol=1e-12, atol=1e-12
    )


def test_batches_and_dtypes():
    logits = router(30, 5, 2.0, 1.0, batch=(2, 3))
    result = minimum_variance_marginals(logits, 6)
    assert result.log_marginals.shape == (2, 3, 30, 5)
    assert result.datapoint_prices.shape == (2, 3, 30)
    assert result.expert_prices.shape == (2, 3, 5)
    assert result.objective.shape == result.gap.shape == (2, 3)
    single = minimum_variance_marginals(logits[1, 2], 6)
    torch.testing.assert_close(result.marginals[1, 2], single.marginals, rtol=1e-12, atol=1e-14)
    strided = minimum_variance_marginals(logits.mT.contiguous().mT, 6)
    torch.testing.assert_close(strided.marginals, result.marginals)
    for dtype in (torch.float32, torch.bfloat16):
        low = minimum_variance_marginals(logits.to(dtype), 6)
        assert low.log_marginals.dtype == torch.float32
        assert_feasible(low.marginals, 6, tolerance=1e-5)
    everybody = torch.ones(1, 1, 30, dtype=torch.bool).expand(2, 3, 30)
    assert torch.equal(minimum_variance_marginals(logits, 6, mask=everybody).marginals, result.marginals)
    assert minimum_variance_marginals(logits[:0], 6).log_marginals.shape == (0, 3, 30, 5)


def test_any_start_gives_the_same_optimum():
    logits = router(200, 8, 2.0, 1.0)
    cold = minimum_variance_marginals(logits, 25)
    for prices in (cold.expert_prices, torch.zeros(8), torch.full((8,), 50.0)):
        warm = minimum_variance_marginals(logits, 25, initial_prices=prices)
        assert warm.objective.item() == pytest.approx(cold.objective.item(), rel=1e-7)


def test_marginals_stay_feasible_without_convergence():
    logits = router(200, 8, 5.0, 2.0)
    stopped = minimum_variance_marginals(logits, 25, max_steps=1)
    assert_feasible(stopped.marginals, 25)
    best = minimum_variance_marginals(logits, 25).objective.item()
    assert best < stopped.objective.item()
    assert stopped.objective.item() - stopped.gap.item() <= best * (1 + 1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity must be a positive int"),
        ({"capacity": 2.0}, "capacity must be a positive int"),
        ({"logits": torch.zeros(4, 2, dtype=torch.long)}, "logits must be floating-point"),
        ({"logits": torch.zeros(4)}, "logits must be floating-point"),
        ({"logits": torch.full((4, 2), torch.nan)}, "nan"),
        ({"logits": torch.full((4, 2), -torch.inf)}, "at least one expert"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, "mask must be bool"),
        ({"mask": torch.ones(4)}, "mask must be bool"),
        ({"initial_prices": torch.ones(3)}, "initial_prices must have shape"),
        ({"initial_prices": -torch.ones(2)}, "initial_prices must be finite"),
        ({"tolerance": 0.0}, "tolerance must lie"),
        ({"max_steps": 0}, "max_steps must be"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        minimum_variance_marginals(**({"logits": torch.zeros(4, 2), "capacity": 2} | arguments))
