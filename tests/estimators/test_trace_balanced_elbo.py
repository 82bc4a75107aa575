"""The balanced objective in programs: plates, couplings, layers; test_gradients.py has every combination."""

from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor

from prob_moe.distributions import CapacitySkip, GumbelMatching, IndependentRouting
from prob_moe.estimators import (
    Baseline,
    DecayingAverage,
    LeaveOneOut,
    TraceBalanced_ELBO,
)
from prob_moe.testing import GradientReport, exact_balanced_objective, gradient_report
from tests.estimators.named_baselines import make
from tests.estimators.replicas import (
    compare,
    exact_balanced_gradient,
    exact_router_gradient,
    problem,
    standard_errors_off,
    with_capacity,
)

#: tight and slack
CASES = [
    (CapacitySkip, 4, 3, 2),
    (CapacitySkip, 5, 2, 3),
    (IndependentRouting, 4, 2, 2),
    (GumbelMatching, 4, 2, 2),
    (GumbelMatching, 4, 3, 2),
    (GumbelMatching, 3, 3, 1),
]


def into(baseline: Baseline | dict | None, *, distribution: type, n: int, k: int, capacity: int) -> tuple:
    logits, f = problem(n, k)
    return logits, f - 3, with_capacity(distribution, capacity), baseline


def without_guide(run_model: Callable) -> tuple[Callable, None]:
    return run_model, None


def by_pyro(run_model: Callable) -> tuple[Callable, Callable]:
    """Three lines of plain Pyro: the guide draws the assignment from the model's own distribution."""
    return run_model, pyro.poutine.block(run_model, expose=["z"])


@pytest.mark.parametrize("kind", ["decaying", "leave-one-out", "network"])
def test_baselines_take_noise_away(kind: str) -> None:
    variances = []
    for chosen in ("none", kind):
        baseline, _ = make(chosen, 4)
        logits, f, assignment, baseline = into(baseline, distribution=CapacitySkip, n=4, k=2, capacity=3)
        exact = exact_balanced_gradient(logits, f, assignment)
        elbo = TraceBalanced_ELBO(num_particles=2)
        report = compare(elbo, without_guide, logits, f, assignment, baseline, exact=exact, replicas=2000, calls=3)
        variances.append(report.total.variance)
    assert variances[1] < variances[0]


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
@pytest.mark.parametrize(("distribution", "n", "k", "capacity"), CASES)
def test_stock_pyro_is_unbiased_too(elbo: type, distribution: type, n: int, k: int, capacity: int) -> None:
    logits, f = problem(n, k)
    assignment = with_capacity(distribution, capacity)
    exact = exact_balanced_gradient(logits, f, assignment)
    report = compare(elbo(), by_pyro, logits, f, assignment, exact=exact, replicas=300)
    assert report.unbiased, report


@pytest.mark.parametrize("distribution", [CapacitySkip, GumbelMatching])
def test_it_is_another_objective_than_the_routers(distribution: type) -> None:
    logits, f = problem(4, 3)
    assignment = with_capacity(distribution, 2)
    exact = exact_router_gradient(logits, f)
    report = compare(TraceBalanced_ELBO(), without_guide, logits, f, assignment, exact=exact, replicas=40_000)
    assert report.worst > 10


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("kind", ["none", "decaying", "leave-one-out"])
def test_a_plate_of_one_element(kind: str, vectorized: bool) -> None:
    baseline, _ = make(kind, 4)
    logits, f, assignment, baseline = into(baseline, distribution=GumbelMatching, n=4, k=2, capacity=2)
    exact = exact_balanced_gradient(logits, f, assignment).unsqueeze(0)
    elbo = TraceBalanced_ELBO(num_particles=2, vectorize_particles=vectorized, max_plate_nesting=2)
    report = compare(elbo, without_guide, logits, f, assignment, baseline, exact=exact, replicas=1, calls=300)
    assert report.unbiased, report


# Interactions, layers ---------------------------------------------------------------------------------------------


def coupled(logits: Tensor, f: Tensor, baseline: Baseline | None = None) -> None:
    """All datapoints are one cost, which they share: no plate, and they interact."""
    z = pyro.sample("z", GumbelMatching(logits, capacity=2), infer={"baseline": baseline})
    chosen = f.gather(-1, z.unsqueeze(-1)).squeeze(-1)
    pyro.factor("f", 100 + chosen.sum() + (chosen[0] * chosen[1:]).sum())


def report_of_coupled(elbo: pyro.infer.ELBO, baseline: Baseline | None) -> GradientReport:
    logits, f = problem(4, 2)
    leaf = logits.requires_grad_()
    return gradient_report(
        *(coupled, None, elbo, leaf, f, baseline),
        exact=lambda logits, f, _: exact_balanced_objective(coupled, logits, f),
        parameters={"logits": leaf},
        num_samples=400,
    )


@pytest.mark.slow
def test_a_likelihood_that_couples_datapoints() -> None:
    plain = report_of_coupled(TraceBalanced_ELBO(num_particles=2), None)
    for baseline in (DecayingAverage(), LeaveOneOut()):
        report = report_of_coupled(TraceBalanced_ELBO(num_particles=2), baseline)
        assert report.unbiased, report
        assert report.total.variance < plain.total.variance / 5


CHANGE, FACTOR = torch.linspace(-1, 1, 4, dtype=torch.float64), torch.linspace(0, 3, 4, dtype=torch.float64)


def second(logits: Tensor, z1: Tensor) -> Tensor:
    """The second router sees the first assignment of its datapoint."""
    return logits.flip(-1) + torch.stack([z1 * CHANGE, 0 * z1], -1)


def exact_of_two_layers(phi: Tensor) -> Tensor:
    """By enumeration of both."""
    leaf = phi.clone().requires_grad_()
    first = GumbelMatching(leaf, capacity=2)
    objective = torch.zeros((), dtype=torch.float64)
    for z1 in first.enumerate_support():
        then = GumbelMatching(second(leaf, z1), capacity=2)
        z2 = then.enumerate_support()
        value = (then.log_prob(z2).exp() * (FACTOR * (z1 - z2) ** 2).sum(-1)).sum()
        objective = objective + first.log_prob(z1).exp() * value
    return torch.autograd.grad(objective, leaf)[0]


@pytest.mark.parametrize("kind", ["none", "decaying", "leave-one-out"])
def test_two_layers(kind: str) -> None:
    phi, _ = problem(4, 2)
    baseline, particles = make(kind, 4)
    leaf = phi.expand(4000, 4, 2).clone().requires_grad_()

    def model() -> None:
        with pyro.plate("replicas", 4000, dim=-2):
            infer = {"baseline": baseline}
            z1 = pyro.sample("z1", GumbelMatching(leaf.unsqueeze(-3), capacity=2), infer=infer).squeeze(-2)
            logits = second(leaf, z1).unsqueeze(-3)
            z2 = pyro.sample("z2", GumbelMatching(logits, capacity=2), infer=infer).squeeze(-2)
            with pyro.plate("data", 4, dim=-1):
                pyro.factor("f", FACTOR * (z1 - z2) ** 2)

    elbo = TraceBalanced_ELBO(num_particles=particles)
    for _ in range(2):
        gradient = torch.autograd.grad(-elbo.differentiable_loss(model, None), leaf)[0]
    assert standard_errors_off(gradient, exact_of_two_layers(phi)) < 5
