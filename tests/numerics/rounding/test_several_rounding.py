"""Dependent rounding to several experts per datapoint: all random choices enumerated, frequencies, sums."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prob_moe.numerics import dependent_rounding, minimum_variance_marginals
from prob_moe.numerics.rounding._round import round_one
from tests.numerics.rounding.test_rounding import enumerate_choices


def example(n, k, c, m, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    logits = logits + torch.randn(k, generator=generator, dtype=torch.float64)
    return minimum_variance_marginals(logits, c, num_selected=m).marginals


def arbitrary(n, k, seed):
    """Rows and columns with any sums; zeros and ones among the entries."""
    generator = torch.Generator().manual_seed(seed)
    r = torch.rand(n, k, generator=generator, dtype=torch.float64)
    return (1.4 * r - 0.2).clamp(0.0, 1.0)


def held(z, k):
    """0/1 over (*, n, k) from experts (*, m, n)."""
    return torch.nn.functional.one_hot(z.where(z >= 0, k), k + 1).sum(-3)[..., :k]


def assert_sums(h, r):
    for dim in (-1, -2):
        sums, found = r.sum(dim), h.sum(dim)
        assert (found >= (sums - 1e-9).floor()).all()
        assert (found <= (sums + 1e-9).ceil()).all()
    assert h.max() <= 1


def worst_z_score(h, r):
    count = h.shape[0]
    errors = (r * (1 - r) / count).clamp(min=1 / count**2).sqrt()
    return ((h.double().mean(0) - r) / errors).abs().max().item()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "k", "c", "m"), [(3, 3, 2, 2), (4, 3, 3, 2), (3, 4, 3, 3), (5, 3, 2, 2)])
def test_exact_marginals_and_sums_over_all_random_choices(n, k, c, m, seed):
    r = example(n, k, c, m, seed=seed) if seed % 2 else arbitrary(n, k, seed)
    order = np.random.default_rng(seed).permutation(n)
    found = np.zeros((n, k))
    total = 0.0
    for selected, probability in enumerate_choices(r.numpy(), order):
        total += probability
        found += probability * selected
        if probability > 1e-12:
            assert_sums(torch.from_numpy(selected).long(), r)
    assert total == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(found, r.numpy(), rtol=0, atol=1e-12)


CASES = {
    "tight": (example(12, 4, 6, 2), 2),
    "slack": (example(11, 5, 7, 3), 3),
    "sharp": (example(12, 4, 6, 2, scale=20.0), 2),
    "more than fit": (example(9, 4, 4, 2), 2),
    "few datapoints": (example(4, 6, 2, 3), 3),
    "all but one": (example(6, 4, 5, 3), 3),
    "arbitrary": (arbitrary(9, 5, 3), 5),
}


@pytest.mark.parametrize("name", CASES)
def test_marginals_by_monte_carlo(name):
    r, m = CASES[name]
    z = dependent_rounding(r.expand(100_000, *r.shape), num_selected=m, generator=torch.Generator().manual_seed(0))
    h = held(z, r.shape[-1])
    assert_sums(h, r)
    assert worst_z_score(h, r) < 5
    filled = z.where(z >= 0, r.shape[-1] + torch.arange(m).unsqueeze(-1))  # ascending, what is missing comes last
    assert (filled.diff(dim=-2) > 0).all()


def test_steps_of_either_sign_with_probability_one_half_fail_the_same_check():
    r, _ = CASES["tight"]
    n, k = r.shape
    generator = np.random.default_rng(0)
    h = np.empty((4_000, n, k), dtype=bool)
    for out in h:
        choices = np.where(generator.random((n + 1) * k) < 0.5, 0.0, 1.0)
        round_one(r.numpy(), generator.permutation(n), choices, 1e-13, out)
    assert_sums(torch.from_numpy(h).long(), r)
    assert worst_z_score(torch.from_numpy(h), r) > 10


@settings(max_examples=80, deadline=None, derandomize=True)
@given(n=st.integers(1, 30), k=st.integers(1, 9), seed=st.integers(0, 2**31), scale=st.floats(0, 40), data=st.data())
def test_sums_never_leave_floor_and_ceiling(n, k, seed, scale, data):
    torch.manual_seed(seed)
    r = arbitrary(n, k, seed)
    assert_sums(held(dependent_rounding(r.expand(5, n, k), num_selected=k), k), r)
    m = data.draw(st.integers(1, k))
    c = max(1, -(-n * m // k) + data.draw(st.integers(-1, 2)))
    r = example(n, k, c, m, scale=scale, seed=seed)
    h = held(dependent_rounding(r.expand(5, n, k), num_selected=m, capacity=c), k)
    assert (h.sum(-2) <= c).all()
    assert_sums(h, r)


def test_float32_never_overfills_and_fills_every_row():
    r = minimum_variance_marginals(torch.randn(50, 96, 6), 32, num_selected=2).marginals
    for _ in range(20):
        h = held(dependent_rounding(r, num_selected=2, capacity=32), 6)
        assert (h.sum(-2) <= 32).all()
        assert (h.sum(-1) <= 2).all()
        assert h.sum() >= 50 * 192 - 5


def test_one_expert_has_the_same_draw_in_a_form_of_its_own():
    r = minimum_variance_marginals(torch.randn(2, 30, 5, dtype=torch.float64), 6).marginals
    own = [dependent_rounding(r, num_selected=m, generator=torch.Generator().manual_seed(1)) for m in (None, 1)]
    assert torch.equal(own[0].unsqueeze(-2), own[1])


def test_all_experts_pass_through():
    z = dependent_rounding(torch.ones(4, 3), num_selected=3)
    assert torch.equal(z, torch.arange(3).unsqueeze(-1).expand(3, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_selected": 0}, "num_selected must be an int from 1 to k = 3"),
        ({"num_selected": 4}, "num_selected must be an int from 1 to k = 3"),
        ({"num_selected": 1}, "row sums of at most 1"),
        ({"marginals": torch.tensor([[1.5, 0.1, 0.1]])}, "marginals must be at most 1, got 1.5"),
        ({"capacity": 2}, "column sums of at most capacity 2"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        dependent_rounding(**({"marginals": torch.full((4, 3), 2 / 3), "num_selected": 2} | arguments))
