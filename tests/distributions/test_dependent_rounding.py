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
    second = DependentRounding(logits + 0.01, capacity=16, initial_prices=first.expert_prices)
    torch.testing.assert_close(second.log_marginals, first.log_marginals, rtol=1e-4, atol=1e-4)
    assert first.expand([3]).expert_prices.shape == (3, 4)


def test_the_missing_log_prob_names_what_works() -> None:
    rounding = DependentRounding(torch.zeros(4, 2), capacity=2)
    with pytest.raises(NotImplementedError, match=r"TraceRouting_ELBO .* works without.*GumbelMatching"):
        rounding.log_prob(rounding.sample())


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"marginals must be one of .*, got 'best'"):
        DependentRounding(torch.zeros(4, 2), capacity=2, marginals="best")
    with pytest.raises(ValueError, match="have no prices"):
        _ = DependentRounding(torch.zeros(4, 2), capacity=2, marginals="router").expert_prices
