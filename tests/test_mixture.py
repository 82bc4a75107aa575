"""The mixture as a Pyro model: shapes, Predictive, exact quantities, gradients through all of it."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

from prob_moe.distributions import AssignmentDistribution, CapacitySkip, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.testing import exact_balanced_objective, gradient_report
from tests.estimators.replicas import standard_errors_off

PROCEDURES = [IndependentRouting, CapacitySkip, GumbelMatching]


def gaussian(out: Tensor) -> dist.Normal:
    return dist.Normal(out.squeeze(-1), 0.7)


def mixture_of(assignment: type[AssignmentDistribution], k: int = 3, **options: object) -> MixtureOfExperts:
    options = {"capacity_factor": 1.0} | options
    experts = BatchedExperts(k, 2, 4, 1, activation=torch.tanh)
    return MixtureOfExperts(nn.Linear(2, k), experts, gaussian, assignment=assignment, **options).double()


def data(*batch: int, n: int = 6) -> tuple[Tensor, Tensor]:
    x = torch.randn(*batch, n, 2, dtype=torch.float64)
    return x, x.sum(-1).sin() + 1


def no_guide(*args: object, **kwargs: object) -> None:
    pass


@pytest.mark.slow
@pytest.mark.parametrize("assignment", PROCEDURES)
def test_gradients_of_all_parameters_are_unbiased(assignment: type[AssignmentDistribution]) -> None:
    """Router and experts, through dispatch, experts, combine, likelihood and estimator."""
    mixture, (x, y) = mixture_of(assignment), data()
    parameters = list(mixture.parameters())
    exact = torch.autograd.grad(mixture.router_objective(x, y), parameters)
    elbo = TraceRouting_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    draws = []
    for _ in range(1500):
        draws.append(torch.autograd.grad(-elbo.differentiable_loss(mixture, no_guide, x, y), parameters))
    for index, gradient in enumerate(exact):
        assert standard_errors_off(torch.stack([draw[index] for draw in draws]), gradient) < 5


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceGraph_ELBO])
def test_pyros_own_elbos_run_the_balanced_objective(elbo: type) -> None:
    mixture, (x, y) = mixture_of(CapacitySkip), data()
    guide = poutine.block(mixture, expose=["assignment"])
    loss = elbo(num_particles=2).loss_and_grads(mixture, guide, x, y)
    assert loss > 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in mixture.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("assignment", [CapacitySkip, GumbelMatching])
def test_balanced_gradients_of_all_parameters(assignment: type[AssignmentDistribution]) -> None:
    mixture, (x, y) = mixture_of(assignment, baseline={"use_decaying_avg_baseline": True}), data()
    report = gradient_report(
        *(mixture, None, TraceBalanced_ELBO(), x, y),
        exact=partial(exact_balanced_objective, mixture),
        parameters=mixture,
        num_samples=400,
    )
    assert report.unbiased, report


@pytest.mark.parametrize("assignment", PROCEDURES)
def test_predictive(assignment: type[AssignmentDistribution]) -> None:
    mixture, (x, _) = mixture_of(assignment), data()
    for parallel in (False, True):
        samples = Predictive(mixture, num_samples=7, parallel=parallel)(x)
        assert samples["y"].shape == (7, 6)
        assert samples["assignment"].shape[0] == 7
        assert samples["assignment"].shape[-1] == 6


@pytest.mark.parametrize("assignment", PROCEDURES)
def test_batches_in_plates_are_independent_problems(assignment: type[AssignmentDistribution]) -> None:
    """Gradients in a plate of batches are those of the batches alone, in expectation; here: capacity and shapes."""
    mixture, (x, y) = mixture_of(assignment), data(5)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("batches", 5, dim=-2):
            mixture(x, y)

    elbo = TraceRouting_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=2)
    elbo.loss_and_grads(model, no_guide, x, y)
    trace = pyro.poutine.trace(model).get_trace(x, y)
    z = trace.nodes["assignment"]["value"]
    assert z.shape == (5, 1, 6)
    if assignment is not IndependentRouting:
        assert trace.nodes["assignment"]["fn"].loads(z).max() <= 2


def test_exact_quantities_agree_with_the_model() -> None:
    """Sums over the enumerated choices of the traced log-probabilities."""
    mixture, (x, y) = mixture_of(IndependentRouting), data(n=3)
    routing = mixture.routing(x)
    support = routing.enumerate_support()
    log_likelihood = []
    for value in support:
        trace = pyro.poutine.trace(pyro.condition(mixture, {"assignment": value})).get_trace(x, y)
        trace.compute_log_prob()
        log_likelihood.append(trace.nodes["y"]["log_prob_sum"])
    per_value = torch.stack(log_likelihood)
    log_p = routing.log_prob(support)
    torch.testing.assert_close((log_p.exp() * per_value).sum(), mixture.router_objective(x, y))
    torch.testing.assert_close((log_p + per_value).logsumexp(0), mixture.marginal_log_likelihood(x, y).sum())


def test_dropped_and_padding_count_nothing() -> None:
    mixture, (x, y) = mixture_of(CapacitySkip, k=2, capacity=1, capacity_factor=None), data(n=3)
    mask = torch.tensor([True, True, False])
    z = torch.tensor([0, ~0, -1])
    trace = pyro.poutine.trace(pyro.condition(mixture, {"assignment": z})).get_trace(x, y, mask)
    trace.compute_log_prob()
    log_prob = trace.nodes["y"]["log_prob"]
    assert log_prob[1] == log_prob[2] == 0
    torch.testing.assert_close(log_prob[0], mixture.log_likelihoods(x, y)[0, 0])


def load_balancing_site(mixture: MixtureOfExperts, *args: Tensor) -> Tensor:
    trace = pyro.poutine.trace(mixture).get_trace(*args)
    trace.compute_log_prob()
    return trace.nodes["load_balancing"]["log_prob_sum"]


@pytest.mark.parametrize("assignment", PROCEDURES)
def test_load_balancing_is_one_at_balance_and_pulls_towards_it(assignment: type[AssignmentDistribution]) -> None:
    """On expected shares it pulls whatever was drawn, also where the draws are always balanced."""
    x, y = data(n=8)
    mixture = mixture_of(assignment, k=2, load_balancing=0.5)
    with torch.no_grad():
        mixture.router.weight.zero_()
        mixture.router.bias.zero_()
    # weight * n datapoints * 1
    assert load_balancing_site(mixture, x, y).item() == pytest.approx(-4.0)
    with torch.no_grad():
        mixture.router.bias.copy_(torch.tensor([1.0, -1.0]))
    load_balancing_site(mixture, x, y).backward()
    assert mixture.router.bias.grad[0] < 0 < mixture.router.bias.grad[1]
    TraceRouting_ELBO().loss_and_grads(mixture, no_guide, x, y)


@pytest.mark.parametrize("assignment", PROCEDURES)
def test_neural_baseline_trains_along(assignment: type[AssignmentDistribution]) -> None:
    class Baseline(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze(-1)

    mixture, (x, y) = mixture_of(assignment, baseline=Baseline(2, 1)), data()
    TraceRouting_ELBO().loss_and_grads(mixture, no_guide, x, y)
    assert mixture.baseline.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(capacity=2, capacity_factor=1.0), "give capacity or capacity_factor, not both"),
        (dict(capacity=None, capacity_factor=None), "give one of capacity and capacity_factor"),
        (dict(load_balancing=-1.0), "load_balancing must be a weight >= 0, got -1.0"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mixture_of(CapacitySkip, **options)


def test_assignment_with_options() -> None:
    mixture = mixture_of(partial(CapacitySkip, validate_args=True))
    x, y = data()
    assert TraceRouting_ELBO().loss_and_grads(mixture, no_guide, x, y) > 0
