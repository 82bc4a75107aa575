"""log P with sharp logits, and reported errors that cover."""

import math

import pytest
import torch

from prob_moe.distributions import GumbelMatching
from prob_moe.numerics import price_log_density
from prob_moe.numerics.prices.estimate import PriceEstimate
from prob_moe.numerics.prices.likelihood import _bracketed, matching_log_prob
from tests.numerics.brute_force import best_assignment, draw_scores, enumerate_assignments


def random_logits(*shape: int, scale: float, seed: int = 2) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# A problem, as numbers, whose mode lies far from the plateau on which a search from equal prices stops.
SHARP = [
    [-11.79, -6.58, 20.5, -7.64],
    [-24.22, 6.53, -0.82, -7.89],
    [-31.37, 1.59, 11.62, -17.07],
    [-22.66, -17.12, -7.55, 8.8],
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mode_of_sharp_logits_is_nearly_certain(dtype):
    matching = GumbelMatching(torch.tensor(SHARP, dtype=dtype), capacity=1)
    assert matching.log_prob(matching.mode).item() == pytest.approx(-0.0053, abs=5e-4)


@pytest.mark.parametrize("scale", [1.0, 5.0, 15.0, 50.0])
@pytest.mark.parametrize(("n", "k", "capacity"), [(4, 4, 1), (3, 4, 1), (4, 3, 2), (4, 2, 2)])
def test_probabilities_sum_to_one_at_every_scale(n, k, capacity, scale):
    log_prob, error = matching_log_prob(
        random_logits(n, k, scale=scale), enumerate_assignments(n, k, capacity), capacity
    )
    assert (log_prob <= 0).all()
    assert abs(log_prob.exp().sum() - 1) < 2 * (log_prob.exp() * error).sum() + 1e-5


def test_forbidden_pairs_of_sharp_logits():
    logits = random_logits(4, 4, scale=15.0)
    logits[0, 1] = logits[2, 3] = -math.inf
    log_prob, error = matching_log_prob(logits, enumerate_assignments(4, 4, 1), 1)
    assert abs(log_prob.exp().sum() - 1) < 2 * (log_prob.exp() * error).sum() + 1e-5


def test_no_probability_above_one_at_half_precision_extremes():
    log_prob, _ = matching_log_prob(random_logits(4, 3, scale=6e4), enumerate_assignments(4, 3, 2), 2)
    assert (log_prob <= 0).all()
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=1e-6)


def test_an_unlikely_assignment_of_sharp_logits_equals_a_grid():
    logits, assignment = random_logits(3, 3, scale=15.0), torch.tensor([2, 0, 1])
    axis = torch.linspace(-120, 120, 1201, dtype=torch.float64)
    prices = torch.stack([torch.zeros(1201, 1201, dtype=torch.float64), *torch.meshgrid(axis, axis, indexing="ij")], -1)
    exact = price_log_density(logits, assignment, prices, 1).flatten().logsumexp(0) + 2 * math.log(0.2)
    log_prob, error = matching_log_prob(logits, assignment, 1)
    assert abs(log_prob - exact) < 2 * error + 1e-3


@pytest.mark.parametrize(("n", "k", "capacity", "values"), [(8, 8, 1, 30), (16, 8, 2, 16)])
def test_reported_errors_cover(n, k, capacity, values):
    exact = k * math.lgamma(capacity + 1) - math.lgamma(n + 1)
    beyond = 0
    for seed in range(values):
        logits = random_logits(n, 1, scale=3.0, seed=seed) + random_logits(1, k, scale=3.0, seed=seed + 500)
        log_prob, error = matching_log_prob(logits, torch.arange(n) % k, capacity, integration_seed=seed)
        beyond += abs(log_prob - exact) > 2 * error
    # A right error leaves 5 % beyond; more than a fifth would be one chance in a thousand.
    assert beyond <= values / 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [5.0, 15.0])
def test_frequencies_of_sharp_logits(scale, dtype):
    logits = random_logits(4, 3, scale=scale)
    support = enumerate_assignments(4, 3, 2)
    num_draws = 20_000
    drawn = best_assignment(draw_scores(logits, num_draws, seed=1), support)
    frequency = torch.bincount(drawn, minlength=len(support)) / num_draws
    log_prob, error = matching_log_prob(logits.to(dtype), support, 2)
    probability = log_prob.double().exp()
    noise = (probability * (1 - probability) / num_draws).sqrt()
    assert ((frequency - probability).abs() < 5 * noise + 2 * probability * error + 5 / num_draws).all()


def test_where_every_point_misses_the_gradient_is_that_of_supporting_prices():
    problem = torch.zeros(1)
    missed = PriceEstimate.by("quasi-Monte Carlo", problem - torch.inf, problem + torch.inf, [])
    support = torch.zeros(1, 1, 3)
    bracketed = _bracketed(missed, problem - 7.0, support)
    assert bracketed.log_prob.item() == -7.0
    assert bracketed.error.item() == 7.0
    (node,) = bracketed.nodes
    torch.testing.assert_close((node.log_weights - bracketed.log_prob).exp(), torch.ones(1, 1))


def test_another_integration_seed_is_another_estimate():
    logits, value = random_logits(6, 6, scale=1.0), torch.arange(6)
    first, second, again = (
        GumbelMatching(logits, capacity=1, integration_seed=seed).expand([1]).log_prob(value) for seed in (0, 1, 0)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_wrong_integration_seed_is_refused(seed):
    with pytest.raises(ValueError, match="integration_seed must be an int from 0"):
        GumbelMatching(torch.zeros(2, 2), capacity=1, integration_seed=seed)
