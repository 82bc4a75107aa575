"""Dependent rounding: marginals by full enumeration of the random choices and by Monte Carlo; loads in every draw."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prob_moe.numerics import dependent_rounding, minimum_variance_marginals, router_marginals
from prob_moe.numerics.rounding._round import round_one


def example(n, k, c, scale=2.0, bias=1.0, seed=0, kind="minimum_variance"):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    logits = logits + bias * torch.randn(k, generator=generator, dtype=torch.float64)
    if kind == "router":
        return router_marginals(logits, c).exp()
    return minimum_variance_marginals(logits, c).marginals


def substochastic(n, k, seed):
    """Rows with drops, zeros, ones; columns with any sums."""
    generator = torch.Generator().manual_seed(seed)
    r = torch.rand(n, k, generator=generator, dtype=torch.float64)
    r = r * (torch.rand(n, k, generator=generator) < 0.7)
    r = r / (r.sum(-1, keepdim=True) + torch.rand(n, 1, generator=generator, dtype=torch.float64)).clamp(min=1e-9)
    r[0], r[0, 0] = 0.0, 1.0
    r[-1] = 0.0
    return r


def assert_loads(z, r):
    """Loads and the number of dropped lie within floor and ceiling of the marginals' sums; z is (draws, n)."""
    k = r.shape[-1]
    full = torch.cat([r, 1 - r.sum(-1, keepdim=True)], -1)
    sums = full.sum(0)
    loads = torch.nn.functional.one_hot(z.where(z >= 0, k), k + 1).sum(-2)
    assert (loads >= (sums - 1e-9).floor()).all()
    assert (loads <= (sums + 1e-9).ceil()).all()


def worst_z_score(z, r):
    """Largest |z| over the entries of the marginals, estimated from independent draws (draws, n)."""
    k = r.shape[-1]
    full = torch.cat([r, (1 - r.sum(-1, keepdim=True)).clamp(min=0)], -1)
    frequencies = torch.nn.functional.one_hot(z.where(z >= 0, k), k + 1).double().mean(0)
    # At least one draw's worth of standard error, so that near-zero probabilities do not divide by zero.
    errors = (full * (1 - full) / z.shape[0]).clamp(min=1 / z.shape[0] ** 2).sqrt()
    return ((frequencies - full) / errors).abs().max().item()


def draws(r, count, **kwargs):
    return dependent_rounding(r.expand(count, *r.shape), **kwargs)


def enumerate_choices(r, order):
    """Every outcome of the random choices with its probability, for one order of the rows.

    The kernel overwrites a uniform by the probability that it was compared with; −1 takes the first branch, 1 the
    second.
    """
    n, k = r.shape
    pending = [((), 1.0)]
    while pending:
        prefix, probability = pending.pop()
        tape = np.full((n + 1) * k, -1.0)
        tape[: len(prefix)] = prefix
        selected = np.empty((n, k), dtype=bool)
        round_one(r, order, tape, 1e-13, selected)
        met = tape[tape >= 0]
        taken = tuple(prefix) + (-1.0,) * (met.size - len(prefix))
        for depth in range(len(prefix), met.size):  # the untaken branch at each new choice
            pending.append(((*taken[:depth], 1.0), probability * met[len(prefix) : depth].prod() * (1 - met[depth])))
        yield selected, probability * met[len(prefix) :].prod()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("n", "k", "c"), [(3, 2, 2), (4, 2, 2), (4, 3, 2), (5, 3, 2)])
def test_exact_marginals_and_loads_over_all_random_choices(n, k, c, seed):
    r = (example(n, k, c, seed=seed) if seed % 2 else substochastic(n, k, seed)).numpy()
    order = np.random.default_rng(seed).permutation(n)
    full = np.c_[r, 1 - r.sum(-1)]
    found = np.zeros_like(full)
    total = 0.0
    for selected, probability in enumerate_choices(r, order):
        assert (selected.sum(-1) <= 1).all()
        out = np.where(selected.any(-1), selected.argmax(-1), k)
        assert probability >= 0
        total += probability
        found[np.arange(n), out] += probability
        loads = np.bincount(out, minlength=k + 1)
        if probability > 1e-12:
            assert (loads >= np.floor(full.sum(0) - 1e-9)).all()
            assert (loads <= np.ceil(full.sum(0) + 1e-9)).all()
    assert total == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(found, full, rtol=0, atol=1e-12)


CASES = {
    "tight": example(12, 4, 3),
    "slack": example(10, 4, 4, scale=1.0),
    "tight and sharp": example(16, 4, 4, scale=8.0),
    "drops": example(12, 3, 4, bias=3.0, kind="router"),
    "arbitrary": substochastic(11, 5, 3),
    "more experts than datapoints": example(3, 7, 1),
    "one expert": torch.full((5, 1), 0.3, dtype=torch.float64),
}


@pytest.mark.parametrize("name", CASES)
def test_marginals_by_monte_carlo(name):
    z = draws(CASES[name], 40_000)
    assert worst_z_score(z, CASES[name]) < 5
    assert_loads(z, CASES[name])


def test_weights_are_unbiased():
    logits = torch.randn(9, 3, dtype=torch.float64) * 2
    marginals = minimum_variance_marginals(logits, 3)
    p, r = logits.softmax(-1), marginals.marginals
    z = draws(r, 40_000, capacity=3)
    chosen = torch.nn.functional.one_hot(z, 3).double() * (p / r)
    errors = (p * p / r - p * p).clamp(min=1e-12).div(z.shape[0]).sqrt()
    assert ((chosen.mean(0) - p) / errors).abs().max() < 5
    second = (chosen.sum(-1) ** 2).sum(-1)
    assert abs(second.mean() - marginals.objective) < 5 * second.std() / z.shape[0] ** 0.5


def test_steps_of_either_sign_with_probability_one_half_fail_the_same_check():
    """The same forest, but blind to the sizes of its two steps: loads still hold, the marginals do not."""
    r = CASES["tight"]
    n, k = r.shape
    generator = np.random.default_rng(0)
    z = torch.empty(4_000, n, dtype=torch.long)
    selected = np.empty((n, k), dtype=bool)
    for out in z.numpy():
        order = generator.permutation(n)
        choices = np.where(generator.random((n + 1) * k) < 0.5, 0.0, 1.0)
        round_one(r.numpy(), order, choices, 1e-13, selected)
        out[:] = np.where(selected.any(-1), selected.argmax(-1), -1)
    assert_loads(z, r)
    assert worst_z_score(z, r) > 10


@settings(max_examples=80)
@given(n=st.integers(1, 30), k=st.integers(1, 9), seed=st.integers(0, 2**31), scale=st.floats(0, 30))
def test_loads_never_leave_floor_and_ceiling(n, k, seed, scale):
    torch.manual_seed(seed)
    r = substochastic(n, k, seed)
    assert_loads(draws(r, 5), r)
    c = -(-n // k)
    tight = example(n, k, c, scale=scale, seed=seed)
    z = draws(tight, 5, capacity=c)
    assert (torch.nn.functional.one_hot(z.where(z >= 0, k), k + 1).sum(-2)[..., :k] <= c).all()
    assert_loads(z, tight)


def test_sums_that_exceed_capacity_by_rounding_never_overfill():
    logits = torch.randn(50, 96, 6, dtype=torch.float64)
    exact = minimum_variance_marginals(logits, 16).marginals
    above = exact * (1 + 1e-15)
    for r, capacity in ((above / above.sum(-1, keepdim=True).clamp(min=1), None), (exact.float(), 16)):
        for _ in range(20):
            z = dependent_rounding(r, capacity=capacity)
            assert torch.nn.functional.one_hot(z, 6).sum(-2).max() <= 16


def test_integral_marginals_pass_through():
    z = torch.tensor([2, 0, -1, 1, 1])
    r = torch.nn.functional.one_hot(z.clamp(min=0), 3).double() * (z >= 0).unsqueeze(-1)
    assert torch.equal(dependent_rounding(r), z)
    assert torch.equal(dependent_rounding(torch.zeros(4, 2)), torch.full((4,), -1))


def test_the_seed_determines_the_draw():
    r = minimum_variance_marginals(torch.randn(3, 64, 8, dtype=torch.float64), 8).marginals
    torch.manual_seed(5)
    first, second = dependent_rounding(r), dependent_rounding(r)
    torch.manual_seed(5)
    assert torch.equal(dependent_rounding(r), first)
    assert not torch.equal(first, second)
    assert first.shape == (3, 64)
    assert first.dtype == torch.long
    own = [dependent_rounding(r, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*own)
    torch.manual_seed(5)
    assert torch.equal(dependent_rounding(r.mT.contiguous().mT), first)
    assert dependent_rounding(r[:0]).shape == (0, 64)


def test_batch_members_are_independent():
    """Two copies agree as often as independence says: P(z_i = z'_i) = Σ_j r_ij²."""
    r = CASES["tight"]
    z = draws(r, 40_000)
    agree = (z[::2] == z[1::2]).double().mean(0)
    expected = (r * r).sum(-1)
    errors = (expected * (1 - expected) / 20_000).clamp(min=1e-9).sqrt()
    assert ((agree - expected) / errors).abs().max() < 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"marginals": torch.zeros(4, 2, dtype=torch.long)}, "marginals must be float32 or float64"),
        ({"marginals": torch.zeros(4, 2, dtype=torch.bfloat16)}, "marginals must be float32 or float64"),
        ({"marginals": torch.zeros(4)}, "marginals must be float32 or float64"),
        ({"marginals": -torch.ones(4, 2)}, "nonnegative"),
        ({"marginals": torch.full((4, 2), torch.nan)}, "nonnegative"),
        ({"marginals": torch.ones(4, 2)}, "row sums of at most 1, got 2"),
        ({"marginals": torch.full((4, 2), 0.5), "capacity": 1}, "column sums of at most capacity 1, got 2"),
        ({"capacity": 0}, "capacity must be a positive int"),
        ({"capacity": 1.5}, "capacity must be a positive int"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        dependent_rounding(**({"marginals": torch.full((4, 2), 0.25)} | arguments))
