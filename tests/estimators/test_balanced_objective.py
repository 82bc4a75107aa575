"""The balanced objective through Pyro's own ELBOs, against enumeration."""

import pyro
import pytest

from prob_moe.distributions import CapacitySkip, IndependentRouting
from prob_moe.estimators import balanced_objective
from tests.estimators.replicas import (
    compare,
    exact_balanced_gradient,
    exact_router_gradient,
    problem,
    with_capacity,
)

ELBOS = [pyro.infer.Trace_ELBO, pyro.infer.TraceGraph_ELBO]


@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize(
    ("distribution", "n", "k", "capacity"),
    [(CapacitySkip, 4, 3, 2), (CapacitySkip, 5, 2, 3), (IndependentRouting, 4, 2, 2)],
)
def test_unbiased(elbo: type, distribution: type, n: int, k: int, capacity: int) -> None:
    logits, f = problem(n, k)
    assignment = with_capacity(distribution, capacity)
    exact = exact_balanced_gradient(logits, f, assignment)
    report = compare(elbo(), balanced_objective, logits, f, assignment, exact=exact, replicas=5000)
    assert report.unbiased, report


def test_it_is_another_objective_than_the_routers() -> None:
    logits, f = problem(4, 3)
    exact = exact_router_gradient(logits, f)
    assignment = with_capacity(CapacitySkip, 2)
    report = compare(pyro.infer.Trace_ELBO(), balanced_objective, logits, f, assignment, exact=exact, replicas=20_000)
    assert report.worst > 10
