"""The balanced objective through Pyro's own ELBOs, against enumeration."""

from collections.abc import Callable

import pyro
import pytest
import torch

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import balanced_objective
from tests.estimators.replicas import (
    compare,
    exact_balanced_gradient,
    exact_router_gradient,
    problem,
    standard_errors_off,
    with_capacity,
)

ELBOS = [pyro.infer.Trace_ELBO, pyro.infer.TraceGraph_ELBO]
CASES = [
    (CapacitySkip, 4, 3, 2),
    (CapacitySkip, 5, 2, 3),
    (IndependentRouting, 4, 2, 2),
    (GumbelMatching, 4, 2, 2),
    (GumbelMatching, 4, 3, 2),
    (GumbelMatching, 3, 3, 1),
    (GumbelMatching, 3, 2, 2),
]


def stock_pair(run_model: Callable) -> tuple[Callable, Callable]:
    """The guide draws the assignment from the model's own distribution: plain Pyro, log_prob on both sides."""
    return run_model, pyro.poutine.block(run_model, expose=["z"])


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize(("distribution", "n", "k", "capacity"), CASES)
def test_unbiased(elbo: type, distribution: type, n: int, k: int, capacity: int) -> None:
    logits, f = problem(n, k)
    assignment = with_capacity(distribution, capacity)
    exact = exact_balanced_gradient(logits, f, assignment)
    report = compare(elbo(), balanced_objective, logits, f, assignment, exact=exact, replicas=5000)
    assert report.unbiased, report


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize(("distribution", "n", "k", "capacity"), [CASES[0], *CASES[3:]])
def test_stock_pyro_is_unbiased_too(elbo: type, distribution: type, n: int, k: int, capacity: int) -> None:
    logits, f = problem(n, k)
    assignment = with_capacity(distribution, capacity)
    exact = exact_balanced_gradient(logits, f, assignment)
    report = compare(elbo(), stock_pair, logits, f, assignment, exact=exact, replicas=300)
    assert report.unbiased, report


@pytest.mark.parametrize("distribution", [CapacitySkip, GumbelMatching])
def test_it_is_another_objective_than_the_routers(distribution: type) -> None:
    logits, f = problem(4, 3)
    assignment = with_capacity(distribution, 2)
    exact = exact_router_gradient(logits, f)
    report = compare(pyro.infer.Trace_ELBO(), balanced_objective, logits, f, assignment, exact=exact, replicas=40_000)
    assert report.worst > 10


@pytest.mark.parametrize("elbo", ELBOS)
def test_two_layers(elbo: type) -> None:
    """The second router sees the first assignment of its datapoint; the exact gradient enumerates both."""
    phi, _ = problem(4, 2)
    change, f = torch.linspace(-1, 1, 4, dtype=torch.float64), torch.linspace(0, 3, 4, dtype=torch.float64)

    def second(logits: torch.Tensor, z1: torch.Tensor) -> torch.Tensor:
        return logits.flip(-1) + torch.stack([z1 * change, 0 * z1], -1)

    def model(logits: torch.Tensor) -> None:
        logits = pyro.param("logits", logits)
        with pyro.plate("replicas", len(logits), dim=-2):
            z1 = pyro.sample("z1", GumbelMatching(logits.unsqueeze(-3), capacity=2)).squeeze(-2)
            z2 = pyro.sample("z2", GumbelMatching(second(logits, z1).unsqueeze(-3), capacity=2)).squeeze(-2)
            with pyro.plate("data", 4, dim=-1):
                pyro.factor("f", f * (z1 - z2) ** 2)

    leaf = phi.clone().requires_grad_()
    first = GumbelMatching(leaf, capacity=2)
    objective = torch.zeros((), dtype=torch.float64)
    for z1 in first.enumerate_support():
        then = GumbelMatching(second(leaf, z1), capacity=2)
        z2 = then.enumerate_support()
        value = (then.log_prob(z2).exp() * (f * (z1 - z2) ** 2).sum(-1)).sum()
        objective = objective + first.log_prob(z1).exp() * value
    exact = torch.autograd.grad(objective, leaf)[0]

    elbo().loss_and_grads(*balanced_objective(model), phi.expand(5000, 4, 2).clone())
    assert standard_errors_off(-pyro.param("logits").grad, exact) < 5


def test_without_a_log_prob_the_error_names_what_works() -> None:
    logits, f = problem(4, 2)
    assignment = with_capacity(DependentRounding, 2)
    with pytest.raises(NotImplementedError, match=r"no joint log_prob: .*TraceRouting_ELBO"):
        compare(pyro.infer.Trace_ELBO(), balanced_objective, logits, f, assignment, exact=logits, replicas=100)
