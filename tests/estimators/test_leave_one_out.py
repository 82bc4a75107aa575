"""The leave-one-out baseline over particles, against enumeration of the balanced objective."""

import math
from collections.abc import Callable

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from prob_moe.distributions import CapacitySkip, GumbelMatching, IndependentRouting
from prob_moe.estimators import LeaveOneOut_ELBO, balanced_objective
from prob_moe.testing import GradientReport, exact_balanced_objective, gradient_report
from tests.estimators.replicas import compare, exact_balanced_gradient, problem, with_capacity

CASES = [(CapacitySkip, 4, 3, 2), (IndependentRouting, 4, 2, 2), (GumbelMatching, 4, 3, 2), (GumbelMatching, 3, 2, 2)]


class WithOwnParticle(LeaveOneOut_ELBO):
    """Biased: the mean includes the particle that it is subtracted from."""

    def _baseline_term(self, traces: list) -> Tensor:
        mean_of_all = super()._baseline_term(traces) * (self.num_particles - 1)
        own = sum(self._own(*pair) for pair in traces)
        return (mean_of_all + own) / self.num_particles

    def _own(self, model_trace: pyro.poutine.Trace, guide_trace: pyro.poutine.Trace) -> Tensor:
        score_term = -self._differentiable_loss_particle(model_trace, guide_trace)[1]
        for site in model_trace.nodes.values():
            if site["type"] == "sample":
                score_term = score_term - site["log_prob_sum"]
        return score_term


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize(("distribution", "n", "k", "capacity"), CASES)
def test_unbiased_with_a_plate(vectorized: bool, distribution: type, n: int, k: int, capacity: int) -> None:
    logits, f = problem(n, k)
    assignment = with_capacity(distribution, capacity)
    exact = exact_balanced_gradient(logits, f, assignment)
    elbo = LeaveOneOut_ELBO(num_particles=3, vectorize_particles=vectorized, max_plate_nesting=2)
    report = compare(elbo, balanced_objective, logits, f, assignment, exact=exact, replicas=4000)
    assert report.unbiased, report


def test_the_mean_with_the_own_particle_fails() -> None:
    logits, f = problem(4, 3)
    assignment = with_capacity(GumbelMatching, 2)
    exact = exact_balanced_gradient(logits, f, assignment)
    for elbo, unbiased in ((LeaveOneOut_ELBO(num_particles=2), True), (WithOwnParticle(num_particles=2), False)):
        report = compare(elbo, balanced_objective, logits, f, assignment, exact=exact, replicas=4000)
        assert report.unbiased == unbiased, report


def single(logits: Tensor, f: Tensor) -> None:
    """All datapoints are one cost, which they share: no plate, and they interact."""
    z = pyro.sample("z", GumbelMatching(logits, capacity=2))
    chosen = f.gather(-1, z.unsqueeze(-1)).squeeze(-1)
    pyro.factor("f", 100 + chosen.sum() + (chosen[0] * chosen[1:]).sum())


def report_without_plate(elbo: pyro.infer.ELBO, pair: tuple[Callable, Callable]) -> GradientReport:
    logits, f = problem(4, 2)
    leaf = logits.requires_grad_()
    return gradient_report(
        *(*pair, elbo, leaf, f),
        exact=lambda logits, f: exact_balanced_objective(single, logits, f),
        parameters={"logits": leaf},
        num_samples=400,
    )


def test_unbiased_without_a_plate_and_less_noisy_than_without_baseline() -> None:
    report = report_without_plate(LeaveOneOut_ELBO(), balanced_objective(single))
    assert report.unbiased, report
    plain = report_without_plate(Trace_ELBO(num_particles=2), balanced_objective(single))
    assert report.total.variance < plain.total.variance / 5


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_plate_of_one_element(vectorized: bool) -> None:
    logits, f = problem(4, 2)
    assignment = with_capacity(GumbelMatching, 2)
    exact = exact_balanced_gradient(logits, f, assignment).unsqueeze(0)
    elbo = LeaveOneOut_ELBO(vectorize_particles=vectorized, max_plate_nesting=2)
    report = compare(elbo, balanced_objective, logits, f, assignment, exact=exact, replicas=1, calls=400)
    assert report.unbiased, report
    plain = Trace_ELBO(num_particles=2)
    noisy = compare(plain, balanced_objective, logits, f, assignment, exact=exact, replicas=1, calls=400)
    assert report.total.variance < noisy.total.variance


def test_any_pair_of_model_and_guide() -> None:
    """A guide that is not the model: stock Pyro runs both, and log p - log q does not cancel."""
    loc = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def model() -> None:
        z = pyro.sample("z", pyro.distributions.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
        pyro.factor("f", 2 * z + 5)

    def guide() -> None:
        pyro.sample("z", pyro.distributions.Bernoulli(logits=loc))

    def exact() -> Tensor:
        q = torch.stack([loc.neg().sigmoid(), loc.sigmoid()])
        return (q * (torch.tensor([5.0, 7.0], dtype=torch.float64) + math.log(0.5) - q.log())).sum()

    for vectorized in (False, True):
        elbo = LeaveOneOut_ELBO(num_particles=4, vectorize_particles=vectorized, max_plate_nesting=0)
        report = gradient_report(model, guide, elbo, exact=exact, parameters={"loc": loc}, num_samples=500)
        assert report.unbiased, report


def test_the_model_runs_once_a_particle() -> None:
    runs = []

    def model(logits: Tensor) -> None:
        runs.append(logits)
        z = pyro.sample("z", CapacitySkip(logits, capacity=2))
        pyro.factor("f", z.double().sum(-1))

    logits = torch.zeros(4, 2, requires_grad=True)
    for vectorized, count in ((False, 3), (True, 1)):
        runs.clear()
        elbo = LeaveOneOut_ELBO(num_particles=3, vectorize_particles=vectorized, max_plate_nesting=0)
        elbo.differentiable_loss(*balanced_objective(model), logits).backward()
        assert len(runs) == count


def test_one_particle_is_refused() -> None:
    with pytest.raises(ValueError, match="num_particles=1 must be >= 2"):
        LeaveOneOut_ELBO(num_particles=1)
