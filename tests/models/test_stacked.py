"""Two layers in one model against enumeration over the assignments of both."""

from collections.abc import Callable
from itertools import product

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

from models.assignments import assignments_of
from models.stacked import StackedMixture
from prob_moe.distributions import CapacitySkip, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO
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
        second = model.second.assignment(model.second.router(hidden)[present], capacity_factor=factor)  # type: ignore[misc]
        f = model.second.log_likelihoods(hidden, y)[present]
        for z2 in second.enumerate_support():
            reward = (f.gather(-1, z2.clamp(min=0).unsqueeze(-1)).squeeze(-1) * (z2 >= 0)).sum()
            total = total + (first.log_prob(z1) + second.log_prob(z2)).exp() * reward
    return total


def by_pyro(model: StackedMixture) -> Callable:
    return poutine.block(model, expose=["first", "assignment"])


@pytest.mark.slow
@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO, TraceBalanced_ELBO])
def test_balanced_objective_against_enumeration_of_both_layers(elbo: type) -> None:
    model, (x, y) = stacked(CapacitySkip), data(3)
    parameters = list(model.parameters())
    exact = torch.autograd.grad(exact_balanced_objective(model, x, y), parameters)
    estimator, draws = elbo(), []
    guide = None if elbo is TraceBalanced_ELBO else by_pyro(model)
    for _ in range(200):
        model.zero_grad()
        estimator.loss_and_grads(model, guide, x, y)
        draws.append(torch.cat([-p.grad.flatten() for p in parameters]))
    assert standard_errors_off(torch.stack(draws), torch.cat([g.flatten() for g in exact])) < 5


@pytest.mark.slow
@pytest.mark.parametrize("first", [GumbelMatching, CapacitySkip])
def test_leave_one_out_through_two_matchings(first: type) -> None:
    """The second layer is a matching of those whom the first has processed: all of them, or not all."""
    model, (x, y) = stacked(GumbelMatching, baseline={"use_leave_one_out_baseline": True}), data(3)
    model.assignment = first
    report = gradient_report(
        *(model, None, TraceBalanced_ELBO(num_particles=2), x, y),
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
def test_assignments_go_through_both_layers(assignment: type) -> None:
    model, (x, _) = stacked(assignment, k=3), data(7)
    for sample in (False, True):
        z1, z2 = assignments_of(model, x, sample=sample)
        assert (z2[z1 < 0] == -1).all()
        if not sample:
            assert torch.equal(z1, model.routing(x).mode)
            hidden = model.experts.dense(x)[torch.arange(7), z1.clamp(min=0)]
            assert torch.equal(z2, model.second.routing(hidden, z1 >= 0).mode)


@pytest.mark.parametrize("num_selected", [None, 1, 2, (1, 2)])
def test_predictions_mix_the_paths(num_selected: int | tuple[int, int] | None) -> None:
    """Against a loop over paths; all of them give the marginal likelihood."""
    model, (x, y) = stacked(CapacitySkip, k=3), data(5)
    m, of_second = num_selected if isinstance(num_selected, tuple) else (num_selected or 3,) * 2
    total = torch.zeros(5, dtype=torch.float64)
    for i in range(5):
        p1, one = model.router(x[i]).softmax(-1), x[i : i + 1]
        for e1 in p1.topk(m).indices:
            hidden = model.experts.dense(one)[0, e1]
            p2 = model.second.router(hidden).softmax(-1)
            for e2 in p2.topk(of_second).indices:
                share = p1[e1] / p1.topk(m).values.sum() * p2[e2] / p2.topk(of_second).values.sum()
                f = model.second.log_likelihoods(hidden.unsqueeze(0), y[i : i + 1])[0, e2]
                total[i] += share * f.exp()
    prediction = model.predict(x, num_selected=num_selected)
    torch.testing.assert_close(prediction.log_prob(y), total.log())
    if num_selected is None:
        torch.testing.assert_close(prediction.log_prob(y), model.marginal_log_likelihood(x, y))


def test_draws_of_both_layers_come_from_some_path() -> None:
    """A crowded first layer drops half; with y to be drawn, all of it is processed all the same."""
    model, (x, _) = stacked(CapacitySkip, k=2), data(8)
    model.second.likelihood = lambda out: pyro.distributions.Normal(out.squeeze(-1), 1e-6)
    with torch.no_grad():
        model.router.bias.copy_(torch.tensor([9.0, -9.0]))
    trace = pyro.poutine.trace(model).get_trace(x)
    assert (trace.nodes["first"]["value"] < 0).any()
    paths = model.second.experts.dense(model.experts.dense(x)).flatten(-3)
    distance = (paths - trace.nodes["y"]["value"].unsqueeze(-1)).abs().amin(-1)
    assert (distance < 1e-4).all()


def test_what_stands_in_padding_changes_nothing() -> None:
    model, (x, y) = stacked(CapacitySkip), data(6)
    mask, results = torch.arange(6) < 4, []
    for junk in (0.5, torch.nan):
        x[4:], y[4:] = junk, junk
        model.zero_grad()
        torch.manual_seed(3)
        loss = TraceRouting_ELBO().loss_and_grads(model, None, x, y, mask)
        model.marginal_log_likelihood(x, y, mask).sum().backward()
        model.router_objective(x, y, mask).backward()
        model.predict(x, mask=mask).log_prob(y.nan_to_num())[mask].sum().backward()
        results.append([torch.tensor(loss), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(results[0], results[1])
    exact = model.marginal_log_likelihood(x, y, mask)
    torch.testing.assert_close(exact[:4], model.marginal_log_likelihood(x[:4], y[:4]))
    assert (exact[4:] == 0).all()
