"""Annealed importance sampling against enumeration, counting and symmetry."""

import math

import pytest
import torch
from torch import Tensor

from prob_moe.numerics import METHODS, matching_likelihood, matching_log_prob
from prob_moe.numerics.prices import annealing as annealing_module
from prob_moe.numerics.prices.annealing import annealing
from prob_moe.numerics.prices.density import price_structure
from prob_moe.numerics.prices.derivatives import logit_score
from prob_moe.numerics.prices.estimate import PriceEstimate
from prob_moe.numerics.prices.problem import PriceProblem
from prob_moe.numerics.prices.start import central_prices
from tests.numerics.prices.test_likelihood import enumerate_assignments, random_logits


def annealed(logits: Tensor, assignment: Tensor, capacity: int, seed: int = 0) -> tuple[PriceProblem, PriceEstimate]:
    problem = PriceProblem.build(logits, assignment, price_structure(logits, assignment, capacity))
    return problem, annealing(problem, 0.04, central_prices(problem).unsqueeze(0), seed)


@pytest.mark.parametrize(("n", "k", "capacity", "scale"), [(4, 4, 1, 1.0), (5, 3, 2, 2.0), (5, 3, 3, 1.0)])
def test_values_and_errors_against_quadrature(n: int, k: int, capacity: int, scale: float) -> None:
    """With free slots prices are bounded, without them they are not."""
    support = enumerate_assignments(n, k, capacity)[::7][:4]
    logits = random_logits(n, k, seed=1, scale=scale).expand(len(support), n, k)
    _, found = annealed(logits, support, capacity)
    exact = matching_log_prob(logits, support, capacity)[0]
    z = (found.log_prob - exact) / found.error
    assert z.abs().max() < 3
    assert found.error.max() < 0.1


def test_gradient_within_its_own_standard_errors() -> None:
    """The self-normalised mean of scores, whose error comes from the spread of the particles."""
    logits, assignment = random_logits(4, 4, seed=2), torch.tensor([1, 0, 2, 3])
    exact = torch.autograd.functional.jacobian(lambda phi: matching_log_prob(phi, assignment, 1)[0], logits)
    problem, found = annealed(logits.unsqueeze(0), assignment.unsqueeze(0), 1)
    gradient, error = _gradient(problem, found)
    assert ((gradient - exact) / error).abs().max() < 5
    # An unweighted mean of the scores at the start would not pass: the same check sees what it should.
    start = problem.prices(torch.randn(1000, 1, 4, dtype=torch.float64) * problem.free)
    assert ((logit_score(problem, start).mean(0)[0] - exact) / error).abs().max() > 5


def _gradient(problem: PriceProblem, found: PriceEstimate) -> tuple[Tensor, Tensor]:
    (node,) = found.nodes
    scores = logit_score(problem, node.prices).squeeze(1)
    shares = (node.log_weights - found.log_prob).exp()[..., None]
    mean = (shares * scores).sum(0)
    return mean, (shares.square() * (scores - mean).square()).sum(0).sqrt()


@pytest.mark.slow
@pytest.mark.parametrize("n", [32, 40])
def test_permutations_are_equally_likely(n: int) -> None:
    """Logits that are a sum of a row's and a column's part leave all n! permutations the same probability."""
    logits = random_logits(n, 1, seed=n, scale=2.0) + random_logits(1, n, seed=n + 1, scale=2.0)
    leaf = logits.requires_grad_()
    found = matching_likelihood(leaf, torch.arange(n), 1)
    assert METHODS[found.method] == "annealing"
    assert abs(found.log_prob.item() + math.lgamma(n + 1)) < 3 * found.error.item() < 0.3
    (gradient,) = torch.autograd.grad(found.log_prob, leaf)
    # What every datapoint adds to all experts changes nothing, whatever the prices: an identity. What an expert adds
    # for all datapoints changes nothing either, but only in the mean over the prices.
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(n, dtype=torch.float64), atol=1e-10, rtol=0)
    assert gradient.sum(-2).abs().max() < 0.5


def test_equal_arguments_give_equal_numbers() -> None:
    logits, assignment = random_logits(6, 6, seed=3).expand(2, 6, 6), torch.arange(6).expand(2, 6)
    torch.manual_seed(0)
    first, state = annealed(logits, assignment, 1)[1].log_prob, torch.get_rng_state()
    second = annealed(logits, assignment, 1)[1].log_prob
    assert torch.equal(first, second)
    assert first[0] == first[1]
    assert torch.equal(torch.get_rng_state(), state), "nobody else's generator moves"
    assert annealed(logits, assignment, 1, seed=1)[1].log_prob[0] != first[0]


def test_a_density_that_elimination_denies_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annealing_module, "UNLIKE", 0.0)
    _, found = annealed(random_logits(5, 5, seed=4).unsqueeze(0), torch.arange(5).unsqueeze(0), 1)
    assert found.error.item() == math.inf


def test_moves_that_do_not_keep_the_density_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with quadrature fails where long steps are always accepted."""
    logits, assignment = random_logits(4, 4, seed=2, scale=3.0).unsqueeze(0), torch.arange(4).unsqueeze(0)
    exact = matching_log_prob(logits, assignment, 1)[0]
    monkeypatch.setattr(annealing_module, "STEP", 0.6)
    _, right = annealed(logits, assignment, 1)
    assert ((right.log_prob - exact) / right.error).abs().max() < 3
    monkeypatch.setattr(annealing_module, "_accepted", lambda log_accept, generator: log_accept > -torch.inf)
    _, wrong = annealed(logits, assignment, 1)
    assert not ((wrong.log_prob - exact) / wrong.error).abs().max() < 3
