import pytest
import torch

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching
from prob_moe.distributions.support import router_choices
from tests.distributions.test_contract import logits_of
from tests.estimators.replicas import problem


@pytest.mark.parametrize("marginals", ["minimum_variance", "router"])
@pytest.mark.parametrize(("n", "k", "capacity"), [(6, 3, 2), (7, 3, 3), (4, 4, 1), (7, 3, 1), (9, 2, 3)])
def test_draws_have_the_marginals(marginals: str, n: int, k: int, capacity: int) -> None:
    rounding = DependentRounding(2 * logits_of(n, k), capacity=capacity, marginals=marginals)
    num_samples = 20_000
    value = rounding.sample((num_samples,))
    processed = torch.nn.functional.one_hot(router_choices(value), k) * (value >= 0).unsqueeze(-1)
    r = rounding.log_marginals.exp()
    deviation = (r * (1 - r) / num_samples).clamp(min=1e-12).sqrt()
    assert ((processed.double().mean(0) - r) / deviation).abs().max() < 5
    assert rounding.loads(value).max() <= capacity


@pytest.mark.parametrize("scale", [0.5, 4.0])
@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_second_moment_of_the_weights_is_least(scale: float, bias: float) -> None:
    """Mild and sharp, balanced and unbalanced, tight: at or below skip and Gumbel-Matching."""
    logits = scale * torch.randn(64, 4, dtype=torch.float64) + torch.linspace(0, bias, 4, dtype=torch.float64)
    moments, errors = {}, {}
    for procedure in (DependentRounding, CapacitySkip, GumbelMatching):
        routing = procedure(logits, capacity=16)
        squares = routing.importance_weights(routing.sample((2000,))).square().sum(-1)
        moments[procedure], errors[procedure] = squares.mean(), squares.std() / 2000**0.5
    for other in (CapacitySkip, GumbelMatching):
        assert moments[DependentRounding] < moments[other] + 3 * (errors[DependentRounding] + errors[other])


def test_router_marginals_option_is_no_better() -> None:
    logits, _ = problem(6, 3)
    ours, theirs = (
        ((logits.log_softmax(-1) * 2 - DependentRounding(logits, capacity=2, marginals=m).log_marginals).exp()).sum()
        for m in ("minimum_variance", "router")
    )
    assert ours <= theirs


def test_prices_start_the_next_step() -> None:
    logits = logits_of(64, 4)
    first = DependentRounding(logits, capacity=16)
    prices = first.draw().expert_prices
    assert prices is not None
    assert torch.equal(prices, first.expert_prices)
    second = DependentRounding(logits + 0.01, capacity=16, initial_prices=prices)
    torch.testing.assert_close(second.log_marginals, first.log_marginals, rtol=2e-3, atol=2e-3)
    assert first.expand([3]).expert_prices.shape == (3, 4)
    assert DependentRounding(logits, capacity=16, marginals="router").draw().expert_prices is None


@pytest.mark.parametrize("m", [None, 2])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 1.0), (4.0, 0.0), (4.0, 3.0), (20.0, 3.0)])
def test_tolerance_costs_a_little_variance_and_nothing_else(m: int | None, scale: float, bias: float) -> None:
    logits = scale * torch.randn(512, 16, dtype=torch.float64) + bias * torch.randn(16, dtype=torch.float64)
    capacity = 32 * (m or 1)
    loose = DependentRounding(logits, capacity=capacity, num_selected=m)
    strict = DependentRounding(logits, capacity=capacity, num_selected=m, tolerance=1e-9)
    p, moments = logits.softmax(-1), []
    for rounding in (loose, strict):
        r = rounding.log_marginals.exp()
        torch.testing.assert_close(r.sum(-1), torch.full((512,), m or 1.0, dtype=torch.float64), rtol=0, atol=1e-9)
        assert r.sum(-2).max() <= capacity * (1 + 1e-12)
        moments.append((p * (p / r)).sum())
    assert moments[1] * (1 - 1e-7) <= moments[0] <= 1.003 * moments[1]


def test_where_experts_are_forbidden_nobody_is_dropped_for_a_tolerance() -> None:
    logits = 3 * torch.randn(64, 8, dtype=torch.float64)
    logits[torch.rand(64, 8) < 0.3] = -torch.inf
    logits[:, 0] = 0.0
    kept = DependentRounding(logits, capacity=12).log_marginals.exp().sum(-1)
    assert kept.min() > 1 - 1e-6


def test_the_missing_log_prob_names_what_works() -> None:
    rounding = DependentRounding(torch.zeros(4, 2), capacity=2)
    with pytest.raises(NotImplementedError, match=r"TraceRouting_ELBO .* works without.*GumbelMatching"):
        rounding.log_prob(rounding.sample())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"marginals must be one of .*, got 'best'"):
        DependentRounding(torch.zeros(4, 2), capacity=2, marginals="best")
    with pytest.raises(ValueError, match="tolerance must lie between 0 and 1, got 0"):
        DependentRounding(torch.zeros(4, 2), capacity=2, tolerance=0)
    with pytest.raises(ValueError, match="have no prices"):
        _ = DependentRounding(torch.zeros(4, 2), capacity=2, marginals="router").expert_prices
