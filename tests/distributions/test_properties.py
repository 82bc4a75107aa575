"""Whatever the router says: draws and modes lie in the support, and weights are finite, also for extreme logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting


@st.composite
def problems(draw):
    """Logits (*batch, n, k), a capacity that holds n datapoints, and a mask or None."""
    n, k = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    batch = draw(st.sampled_from([(), (1,), (2, 3)]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scale = draw(st.sampled_from([0.0, 1.0, 30.0, 1e4]))
    logits = scale * torch.randn(*batch, n, k, generator=generator, dtype=torch.float64)
    capacity = draw(st.integers(-(-n // k), n))
    mask = torch.rand(*batch, n, generator=generator) < 0.7 if draw(st.booleans()) else None
    return logits, capacity, mask


@pytest.mark.parametrize("procedure", [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding])
@settings(max_examples=40)
@given(problem=problems())
def test_draws_and_modes_are_legal(procedure, problem):
    logits, capacity, mask = problem
    routing = procedure(logits, capacity=capacity, mask=mask)
    value = routing.sample((3,))
    assert value.shape == (3, *logits.shape[:-1])
    assert bool(routing.support.check(value).all())
    assert bool(routing.support.check(routing.mode).all())
    weights = routing.importance_weights(value)
    assert bool(torch.isfinite(weights).all())
    assert bool((weights >= 0).all())
    assert bool((weights[value < 0] == 0).all())
    if routing.limited:
        assert int(routing.loads(value).max()) <= capacity


@pytest.mark.parametrize("procedure", [IndependentRouting, CapacitySkip, DependentRounding])
@settings(max_examples=40)
@given(problem=problems(), data=st.data())
def test_sets_and_their_modes_are_legal(procedure, problem, data):
    logits, capacity, mask = problem
    n, k = logits.shape[-2:]
    m = data.draw(st.integers(1, k))
    capacity = n if m == k else capacity
    routing = procedure(logits, capacity=capacity, mask=mask, num_selected=m)
    value = routing.sample((3,))
    assert value.shape == (3, *logits.shape[:-2], m, n)
    assert bool(routing.support.check(value).all())
    assert bool(routing.support.check(routing.mode).all())
    weights, kappa = routing.importance_weights(value), routing.keep_probability(value)
    assert bool(torch.isfinite(weights).all())
    assert bool((weights >= 0).all())
    assert bool((weights[value < 0] == 0).all())
    assert bool(((kappa > 0) & (kappa <= 1)).all())
    if procedure is not DependentRounding:
        assert bool(routing.log_prob(value).isfinite().all())
        assert bool(routing.pair_weights(value).isfinite().all())
    if routing.limited:
        assert int(routing.loads(value).max()) <= capacity
