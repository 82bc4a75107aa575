"""Likelihood, joint density and conditionals of Gumbel-Matching, each against another layer of the same truth."""

import math

import pyro
import pytest
import torch
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import get_provenance

from prob_moe.distributions import GumbelMatching
from prob_moe.distributions.noise import gumbel_noise_like
from prob_moe.testing import central_difference
from tests.distributions.test_contract import logits_of

CASES = [(4, 2, 2), (3, 2, 2), (4, 3, 2), (3, 3, 1), (2, 3, 1), (4, 4, 1), (5, 1, 5)]


def perturbed_optima(matching: GumbelMatching, num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Frequencies of the optimum by brute force over the enumeration: no solver, no density."""
    support = matching.enumerate_support()
    scores = gumbel_noise_like(matching.logits.expand(num_samples, *matching.logits.shape)) + matching.logits
    index = support.T.expand(num_samples, *support.T.shape)  # (num_samples, n, count)
    best = scores.gather(-1, index).sum(-2).argmax(-1)
    return support, best.bincount(minlength=len(support)) / num_samples


@pytest.mark.parametrize(("n", "k", "capacity"), CASES)
def test_likelihood_sums_to_one_and_matches_brute_force(n: int, k: int, capacity: int) -> None:
    matching = GumbelMatching(logits_of(n, k), capacity=capacity)
    num_samples = 40_000
    support, frequencies = perturbed_optima(matching, num_samples)
    log_prob, error = matching.log_prob(support), matching.log_prob_error(support)
    p = log_prob.exp()
    assert abs(p.sum() - 1) < 0.005
    assert (error < 0.02).all()
    deviation = (p * (1 - p) / num_samples).sqrt() + p * error
    assert ((frequencies - p) / deviation.clamp(min=1e-12)).abs().max() < 5


@pytest.mark.parametrize(("n", "k", "capacity"), CASES)
def test_sampler_draws_from_the_likelihood(n: int, k: int, capacity: int) -> None:
    matching = GumbelMatching(logits_of(n, k), capacity=capacity)
    support = matching.enumerate_support()
    num_samples = 20_000
    values, counts = torch.cat([support, matching.sample((num_samples,))]).unique(dim=0, return_counts=True)
    assert len(values) == len(support)
    p = matching.log_prob(values).exp()
    deviation = (p * (1 - p) / num_samples).sqrt() + 0.005 * p
    assert (((counts - 1) / num_samples - p) / deviation.clamp(min=1e-12)).abs().max() < 5


@pytest.mark.parametrize("delta", [0.0, 1e-3, 0.7, -2.0, 6.0])
def test_two_by_two_oracle(delta: float) -> None:
    """P(identity) = e^D (e^D - 1 - D) / (e^D - 1)^2, which the Gibbs law of the same logits does not have."""
    logits = torch.tensor([[delta, 0.0], [0.0, 0.0]], dtype=torch.float64)
    ours = GumbelMatching(logits, capacity=1).log_prob(torch.tensor([0, 1])).exp()
    if abs(delta) < 0.01:
        exact = 0.5 + delta / 6
    else:
        exact = math.exp(delta) * (math.expm1(delta) - delta) / math.expm1(delta) ** 2
    assert ours.item() == pytest.approx(exact, abs=1e-6)
    if abs(delta) > 0.5:
        assert abs(ours.item() - 1 / (1 + math.exp(-delta))) > 0.005


@pytest.mark.parametrize(("n", "k", "capacity"), [(4, 2, 2), (3, 2, 2), (4, 3, 2), (3, 3, 1)])
def test_gradient_agrees_with_finite_differences_and_with_the_joint_score(n: int, k: int, capacity: int) -> None:
    logits = logits_of(n, k).requires_grad_()
    value = GumbelMatching(logits.detach(), capacity=capacity).mode
    gradient = torch.autograd.grad(GumbelMatching(logits, capacity=capacity).log_prob(value), logits)[0]
    for _ in range(2):
        direction = torch.randn_like(gradient)
        slope = central_difference(
            lambda phi: GumbelMatching(phi, capacity=capacity).log_prob(value), logits.detach(), direction
        )
        assert slope.agrees_with(float((gradient * direction).sum()), relative_error=0.01), slope
    # E[grad log p(Z, v) | Z] = grad log P(Z), over the draws that gave Z
    num_samples = 20_000
    many = logits.detach().expand(num_samples, n, k).clone().requires_grad_()
    matching = GumbelMatching(many, capacity=capacity)
    draws = matching.sample()
    joint = matching.joint_log_prob(draws, matching.matching(draws).prices)
    scores = torch.autograd.grad(joint.sum(), many)[0][(draws == value).all(-1)]
    assert len(scores) > 300
    deviation = scores.std(0) / len(scores) ** 0.5 + 1e-3
    assert ((scores.mean(0) - gradient) / deviation).abs().max() < 5


def test_marginals_average_the_conditionals() -> None:
    matching = GumbelMatching(logits_of(4, 3), capacity=2)
    support = matching.enumerate_support()
    one_hot = torch.nn.functional.one_hot(support, 3).double()
    exact = (matching.log_prob(support).exp()[:, None, None] * one_hot).sum(0)
    value = matching.sample()
    estimate = matching.marginals(5000)
    torch.testing.assert_close(estimate.sum(-1), torch.ones(4, dtype=torch.float64))
    assert (estimate - exact).abs().max() < 5 * 0.5 / 5000**0.5
    matching.importance_weights(value)  # the earlier draw keeps its own


def test_entropy() -> None:
    matching = GumbelMatching(logits_of(4, 2), capacity=2)
    log_p = matching.log_prob(matching.enumerate_support())
    estimate, error = matching.entropy_estimate(2000)
    assert abs(estimate + (log_p.exp() * log_p).sum()) < 5 * error


def test_importance_ratio_is_the_conditional() -> None:
    """q from the draw against brute force: resample one datapoint's noise, keep the others'."""
    matching = GumbelMatching(logits_of(4, 3), capacity=2)
    value = matching.sample()
    scores = matching.matching(value).scores
    q = matching.conditional_logits(value).softmax(-1)
    support = matching.enumerate_support()
    num_samples = 20_000
    for i in range(4):
        again = scores.expand(num_samples, 4, 3).clone()
        again[:, i] = matching.logits[i] + gumbel_noise_like(again[:, i])
        totals = again.gather(-1, support.T.expand(num_samples, *support.T.shape)).sum(-2)
        frequencies = support[totals.argmax(-1), i].bincount(minlength=3) / num_samples
        deviation = (q[i] * (1 - q[i]) / num_samples).sqrt().clamp(min=1e-12)
        assert ((frequencies - q[i]) / deviation).abs().max() < 5


def test_batches_and_samples() -> None:
    matching = GumbelMatching(logits_of(2, 4, 2), capacity=2)
    value = matching.sample((5,))
    log_prob = matching.log_prob(value)
    assert log_prob.shape == (5, 2)
    single = torch.stack(
        [GumbelMatching(matching.logits[b], capacity=2).log_prob(value[:, b]) for b in range(2)], dim=-1
    )
    torch.testing.assert_close(log_prob, single)
    assert matching.joint_log_prob(value, matching.matching(value).prices).shape == (5, 2)


def test_padding_leaves_the_likelihood_of_the_rest() -> None:
    logits = logits_of(5, 2)
    mask = torch.tensor([True, False, True, True, True])
    value = torch.tensor([0, -1, 1, 1, 0])
    padded = GumbelMatching(logits, capacity=2, mask=mask).log_prob(value)
    torch.testing.assert_close(padded, GumbelMatching(logits[mask], capacity=2).log_prob(value[mask]))


def test_provenance_of_value_and_logits_survives() -> None:
    def model() -> None:
        z1 = pyro.sample("z1", GumbelMatching(logits_of(4, 2), capacity=2))
        pyro.sample("z2", GumbelMatching(logits_of(4, 2) * (1 + z1.unsqueeze(-1)), capacity=2))

    with TrackNonReparam():
        trace = pyro.poutine.trace(model).get_trace()
    trace.compute_score_parts()
    assert get_provenance(trace.nodes["z2"]["value"]) == {"z1", "z2"}
    for name, expected in (("z1", {"z1"}), ("z2", {"z1", "z2"})):
        assert get_provenance(trace.nodes[name]["log_prob"]) == expected
        assert get_provenance(trace.nodes[name]["score_parts"].score_function) == expected


def test_a_foreign_value_gets_a_clear_error_and_a_likelihood() -> None:
    matching = GumbelMatching(logits_of(4, 2), capacity=2)
    value = matching.sample()
    foreign = 1 - value
    for method in (matching.importance_weights, matching.conditional_logits, matching.matching):
        with pytest.raises(ValueError, match=r"carries no draw of GumbelMatching\(logits of shape \(4, 2\)"):
            method(foreign)
    assert torch.isfinite(matching.log_prob(foreign))
    torch.testing.assert_close(matching.score_function(foreign), matching.log_prob(foreign))


def test_bad_values() -> None:
    matching = GumbelMatching(torch.zeros(4, 2), capacity=2, validate_args=True)
    with pytest.raises(ValueError, match="outside the support"):
        matching.log_prob(torch.tensor([0, 0, 0, 1]))
    with pytest.raises(ValueError, match="outside the support"):
        matching.log_prob(torch.tensor([0, 0, 1, ~1]))
    with pytest.raises(ValueError, match=r"prices must be floating point of shape \(\*batch, 2\)"):
        matching.joint_log_prob(torch.tensor([0, 0, 1, 1]), torch.zeros(3))
    logits = torch.zeros(4, 2)
    logits[:3, 0] = -torch.inf
    with pytest.raises(ValueError, match="-inf for too many pairs"):
        GumbelMatching(logits, capacity=2, validate_args=True)
