"""What makes the router objective unbiased and less noisy; tests/estimators/test_gradients.py has every combination."""

import pyro
import pytest
import torch

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceRouting_ELBO
from tests.estimators.named_baselines import make
from tests.estimators.replicas import (
    compare,
    exact_router_gradient,
    problem,
    router_pair,
    standard_errors_off,
    with_capacity,
)


@pytest.mark.parametrize("distribution", [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding])
def test_leave_one_out_takes_noise_away(distribution: type) -> None:
    logits, f = problem(4, 2)
    f = f - 3  # what all have in common, a baseline takes away
    exact, assignment = exact_router_gradient(logits, f), with_capacity(distribution, 2)
    variances = []
    for options in (None, {"use_leave_one_out_baseline": True}):
        elbo = TraceRouting_ELBO(num_particles=3, max_plate_nesting=2)
        report = compare(elbo, router_pair, logits, f, assignment, options, exact=exact, replicas=3000)
        variances.append(report.total.variance)
    assert variances[1] < variances[0]


@pytest.mark.parametrize(("distribution", "capacity"), [(CapacitySkip, 2), (GumbelMatching, 2), (GumbelMatching, 3)])
@pytest.mark.parametrize("baseline", ["none", "pyro's value"])
def test_biased_twins_fail_the_same_check(distribution: type, capacity: int, baseline: str) -> None:
    logits, f = problem(6, 3)
    options, _ = make(baseline, 6)
    assignment = with_capacity(distribution, capacity)
    exact, elbo = exact_router_gradient(logits, f), TraceRouting_ELBO(weighted=False)
    report = compare(elbo, router_pair, logits, f, assignment, options, exact=exact, replicas=4000)
    assert report.worst > 10


def test_baseline_outside_the_weight_fails_the_same_check() -> None:
    """Where Pyro's own code would put it: sum_i (w_i f_i - b_i) grad log p_i."""
    logits, f = problem(6, 3)
    outside = logits.expand(4000, 6, 3).clone().requires_grad_()
    routing = GumbelMatching(outside, capacity=2)
    z = routing.sample()
    weights, cost = routing.importance_weights(z), f.expand(4000, 6, 3).gather(-1, z.unsqueeze(-1)).squeeze(-1)
    surrogate = ((weights * cost + 3.0) * routing.router_log_prob(z)).sum()
    samples = torch.autograd.grad(surrogate, outside)[0]
    assert standard_errors_off(samples, exact_router_gradient(logits, f)) > 10


@pytest.mark.parametrize("vectorize", [True, False])
def test_value_of_the_loss(vectorize: bool) -> None:
    """The loss estimates minus the objective, by every one of Pyro's entrances."""
    logits, f = problem(6, 3)
    objective = float((logits.softmax(-1) * f).sum())
    elbo = TraceRouting_ELBO(num_particles=500, vectorize_particles=vectorize, max_plate_nesting=1)

    def model() -> None:
        z = pyro.sample("z", CapacitySkip(logits, capacity=2))
        z = z.squeeze(-2) if z.dim() > 1 else z
        with pyro.plate("data", 6):
            choices = torch.where(z < 0, ~z, z).unsqueeze(-1)
            pyro.factor("f", f.expand(*choices.shape[:-1], 3).gather(-1, choices).squeeze(-1))

    estimates = [
        elbo.loss(model, lambda: None),
        elbo.loss_and_grads(model, lambda: None),
        elbo.differentiable_loss(model, lambda: None).item(),
    ]
    for estimate in estimates:
        # The weighted sum has a standard deviation of about 8 here.
        assert abs(estimate + objective) < 5 * 8 / 500**0.5
