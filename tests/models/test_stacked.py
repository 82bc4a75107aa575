"""Two layers in one model against enumeration over the assignments of both."""

from itertools import product

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

from models.stacked import StackedMixture
from prob_moe.distributions import CapacitySkip, GumbelMatching, IndependentRouting
from prob_moe.estimators import LeaveOneOut_ELBO, TraceRouting_ELBO, balanced_objective
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.testing import gradient_report
from tests.estimators.replicas import standard_errors_off


def stacked(assignment: type, k: int = 2, **options: object) -> StackedMixture:
    second = MixtureOfExperts(
        nn.Linear(2, k),
        BatchedExperts(k, 2, None, 1),
        lambda out: pyro.distributions.Normal(out.squeeze(-1), 0.7),
        assignment=assignment,
        capacity_factor=1.0,
        **options,
    )
    experts = BatchedExperts(k, 2, 3, 2, activation=torch.tanh, residual=True)
    first = {"assignment": assignment, "capacity_factor": 1.0} | options
    return StackedMixture(nn.Linear(2, k), experts, second, **first).double()


def data(n: int) -> tuple[Tensor, Tensor]:
    x = 2 * torch.randn(n, 2, dtype=torch.float64)
    return x, x.sum(-1).sin() + 1


def conditioned_trace(model: StackedMixture, x: Tensor, y: Tensor, z1: Tensor, z2: Tensor) -> pyro.poutine.Trace:
    trace = pyro.poutine.trace(pyro.condition(model, {"first": z1, "assignment": z2})).get_trace(x, y)
    trace.compute_log_prob()
    return trace


def test_exact_quantities_against_enumeration() -> None:
    model, (x, y) = stacked(IndependentRouting), data(2)
    log_p, log_f = [], []
    for choices in product(range(2), repeat=4):
        trace = conditioned_trace(model, x, y, torch.tensor(choices[:2]), torch.tensor(choices[2:]))
        log_p.append(trace.nodes["first"]["log_prob"] + trace.nodes["assignment"]["log_prob"])
        log_f.append(trace.nodes["y"]["log_prob_sum"])
    log_p, log_f = torch.stack(log_p), torch.stack(log_f)
    torch.testing.assert_close(log_p.exp().sum(), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close((log_p.exp() * log_f).sum(), model.router_objective(x, y))
    torch.testing.assert_close((log_p + log_f).logsumexp(0), model.marginal_log_likelihood(x, y).sum())


@pytest.mark.parametrize("assignment", [CapacitySkip, GumbelMatching])
def test_router_objective_with_leave_one_out_over_vectorised_particles(assignment: type) -> None:
    model, (x, y) = stacked(assignment, baseline={"use_leave_one_out_baseline": True}), data(4)
    parameters = list(model.parameters())
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(model.router_objective(x, y), parameters)])
    elbo = TraceRouting_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    draws = []
    for _ in range(300):
        gradient = torch.autograd.grad(-elbo.differentiable_loss(model, lambda x, y: None, x, y), parameters)
        draws.append(torch.cat([g.flatten() for g in gradient]))
    assert standard_errors_off(torch.stack(draws), exact) < 5


def exact_balanced_objective(model: StackedMixture, x: Tensor, y: Tensor) -> Tensor:
    """The second layer of those whom the first has processed, by enumeration; the others count nothing, no slot."""
    first = model.routing(x)
    total = torch.zeros((), dtype=torch.float64)
    for z1 in first.enumerate_support():
        present = z1 >= 0
        hidden = model.experts.dense(x)[torch.arange(len(x)), z1.clamp(min=0)]
        factor = model.second.capacity_factor
        second = model.second.assignment(model.second.router(hidden)[present], capacity_factor=factor)
        f = model.second.log_likelihoods(hidden, y)[present]
        for z2 in second.enumerate_support():
            reward = (f.gather(-1, z2.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (z2 >= 0)).sum()
            total = total + (first.log_prob(z1) + second.log_prob(z2)).exp() * reward
    return total


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
def test_balanced_objective_against_enumeration_of_both_layers(elbo: type) -> None:
    model, (x, y) = stacked(CapacitySkip), data(3)
    parameters = list(model.parameters())
    exact = torch.autograd.grad(exact_balanced_objective(model, x, y), parameters)
    estimator, pair, draws = elbo(), balanced_objective(model), []
    for _ in range(200):
        model.zero_grad()
        estimator.loss_and_grads(*pair, x, y)
        draws.append(torch.cat([-p.grad.flatten() for p in parameters]))
    assert standard_errors_off(torch.stack(draws), torch.cat([g.flatten() for g in exact])) < 5


@pytest.mark.parametrize("first", [GumbelMatching, CapacitySkip])
def test_leave_one_out_through_two_matchings(first: type) -> None:
    """The second layer is a matching of those whom the first has processed: all of them, or not all."""
    model, (x, y) = stacked(GumbelMatching), data(3)
    model.assignment = first
    report = gradient_report(
        *balanced_objective(model),
        LeaveOneOut_ELBO(),
        *(x, y),
        exact=lambda x, y: exact_balanced_objective(model, x, y),
        parameters=model,
        num_samples=200,
    )
    assert report.unbiased, report


def test_dropped_by_the_first_layer_counts_nothing() -> None:
    model, (x, y) = stacked(CapacitySkip), data(4)
    z1, z2 = torch.tensor([0, ~0, 1, 1]), torch.tensor([1, -1, ~1, 0])
    trace = conditioned_trace(model, x, y, z1, z2)
    log_prob = trace.nodes["y"]["log_prob"]
    assert log_prob[1] == log_prob[2] == 0
    hidden = model.experts.dense(x)[torch.arange(4), z1.clamp(min=0)]
    f = model.second.log_likelihoods(hidden, y)
    torch.testing.assert_close(log_prob[[0, 3]], torch.stack([f[0, 1], f[3, 0]]))
    second = trace.nodes["assignment"]["fn"]
    assert second.loads(second.sample((100,))).sum(-1).max() <= 3


@pytest.mark.parametrize("assignment", [IndependentRouting, CapacitySkip, GumbelMatching])
def test_serving_goes_through_both_layers(assignment: type) -> None:
    model, (x, _) = stacked(assignment, k=3), data(7)
    for sample in (False, True):
        out, (z1, z2) = model.serve(x, sample=sample)
        rows = torch.arange(7)
        hidden = model.experts.dense(x)[rows, z1.clamp(min=0)]
        expected = model.second.experts.dense(hidden)[rows, z2.clamp(min=0)]
        torch.testing.assert_close(out, torch.where(((z1 >= 0) & (z2 >= 0)).unsqueeze(-1), expected, 0.0))
        assert (z2[z1 < 0] == -1).all()
    assert torch.equal(model.serve(x)[1][0], model.routing(x).mode)
