"""The mixture bound against enumeration, the exact marginal likelihood, and what breaks it."""

from typing import Any

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    IndependentRouting,
    SelectedMixture,
)
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.testing import exact_mixture_bound
from prob_moe.testing.statistics import deviation
from tests.estimators.table import Table

N, K = 4, 3
SETTINGS = [(IndependentRouting, 2, None), (IndependentRouting, 3, None), (CapacitySkip, 2, 2), (CapacitySkip, 2, 1)]


def problem() -> tuple[Tensor, Tensor]:
    """Logits and log-likelihoods f, (n, k)."""
    return 1.5 * torch.randn(N, K, dtype=torch.float64), torch.randn(N, K, dtype=torch.float64)


def make(
    procedure: type[AssignmentDistribution], logits: Tensor, m: int | None, capacity: int | None
) -> AssignmentDistribution:
    return procedure(logits, num_selected=m, **({} if capacity is None else {"capacity": capacity}))


def bound_of(routing: AssignmentDistribution, value: Tensor, f: Tensor) -> Tensor:
    """The bound of every datapoint at a draw, (*sample, n)."""
    choices = torch.where(value < 0, ~value, value)
    chosen = f.gather(-1, choices.mT).mT
    mixture = SelectedMixture(
        routing.log_importance_weights(value),
        routing.router_log_prob(value),
        Table(chosen),
        keep_probability=routing.keep_probability(value),
    )
    return mixture.log_prob(torch.zeros(N, dtype=torch.float64))


@pytest.mark.parametrize(("procedure", "m", "capacity"), SETTINGS)
def test_value_and_gradient_against_enumeration(
    procedure: type[AssignmentDistribution], m: int, capacity: int | None
) -> None:
    logits, f = problem()
    logits.requires_grad_()
    f.requires_grad_()
    exact = exact_mixture_bound(make(procedure, logits, m, capacity), f)
    exact_gradients = torch.autograd.grad(exact, (logits, f))
    draws = 20_000
    each = [x.detach().expand(draws, N, K).clone().requires_grad_() for x in (logits, f)]
    routing = make(procedure, each[0], m, capacity)
    bound = bound_of(routing, routing.sample(), each[1]).sum(-1)
    gradients = torch.autograd.grad(bound.sum(), each)
    assert deviation(bound.detach(), exact.detach()).worst()[0] < 5
    for drawn, expected in zip(gradients, exact_gradients):
        worst, index = deviation(drawn, expected).worst()
        assert worst < 5, index
    if m < K:
        # Without the weights the same check fails.
        value = routing.sample()
        choices = torch.where(value < 0, ~value, value)
        log_p = routing.router_log_prob(value)
        wrong = (log_p + each[1].gather(-1, choices.mT).mT).logsumexp(-2).sum(-1)
        assert deviation(wrong.detach(), exact.detach()).worst()[0] > 20


@pytest.mark.parametrize(("procedure", "m", "capacity"), SETTINGS)
def test_it_is_a_bound(procedure: type[AssignmentDistribution], m: int, capacity: int | None) -> None:
    logits, f = problem()
    marginal = (logits.log_softmax(-1) + f).logsumexp(-1).sum()
    assert exact_mixture_bound(make(procedure, logits, m, capacity), f) <= marginal + 1e-12


@pytest.mark.parametrize(("procedure", "m", "capacity"), SETTINGS)
def test_enumeration_survives_likelihoods_that_underflow(
    procedure: type[AssignmentDistribution], m: int, capacity: int | None
) -> None:
    logits, f = problem()
    routing = make(procedure, logits, m, capacity)
    moved = exact_mixture_bound(routing, f - 2000.0)
    torch.testing.assert_close(moved, exact_mixture_bound(routing, f) - 2000.0 * N, rtol=1e-12, atol=0)


def test_dropping_without_the_keep_probability_is_no_bound_and_is_rewarded() -> None:
    logits, f = torch.zeros(3, 3, dtype=torch.float64), torch.full((3, 3), -1.0, dtype=torch.float64)
    routing = CapacitySkip(logits, capacity=1, num_selected=2)
    values = routing.enumerate_support()
    probability = routing.log_prob(values).exp()
    marginal = (logits.log_softmax(-1) + f).logsumexp(-1).sum()

    def expected(kappa: bool) -> Tensor:
        chosen = f.expand(len(values), 3, 3).gather(-1, torch.where(values < 0, ~values, values).mT).mT
        mixture = SelectedMixture(
            routing.log_importance_weights(values),
            routing.router_log_prob(values),
            Table(chosen),
            keep_probability=routing.keep_probability(values) if kappa else None,
        )
        return (probability * mixture.log_prob(torch.zeros(3, dtype=torch.float64)).sum(-1)).sum()

    assert expected(True) < marginal
    assert expected(False) > marginal


def test_nobody_kept_is_zero_without_a_gradient() -> None:
    log_p = torch.tensor([[0.5, 0.3], [0.5, 0.7]]).log().requires_grad_()
    f = torch.tensor([[0.0, -1.0], [0.0, -2.0]], requires_grad=True)
    log_weights = torch.tensor([[-torch.inf, 0.0], [-torch.inf, 0.1]])
    bound = SelectedMixture(log_weights, log_p, Table(f), keep_probability=torch.tensor([0.5, 0.9])).log_prob(
        torch.zeros(2)
    )
    assert bound[0] == 0
    for gradient in torch.autograd.grad(bound.sum(), (log_p, f)):
        assert gradient.isfinite().all()
        assert (gradient[:, 0] == 0).all()


# Through Pyro ---------------------------------------------------------------------------------------------------------


def mixture_of(
    m: int | None, procedure: type[AssignmentDistribution] = IndependentRouting, **kwargs: Any
) -> MixtureOfExperts:
    return MixtureOfExperts(
        nn.Linear(2, K).double(),
        BatchedExperts(K, 2, None, 1, dtype=torch.float64),
        lambda out: pyro.distributions.Normal(out.squeeze(-1), 0.5),
        assignment=procedure,
        capacity_factor=kwargs.pop("capacity_factor", float(K)),
        num_selected=m,
        **kwargs,
    )


def data(*batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*batch, 6, 2, dtype=torch.float64), torch.randn(*batch, 6, dtype=torch.float64)


def gradients_of(loss: Tensor, mixture: MixtureOfExperts) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(mixture.parameters())))


@pytest.mark.parametrize("procedure", [IndependentRouting, DependentRounding, CapacitySkip])
def test_with_all_experts_it_is_the_marginal_likelihood(procedure: type[AssignmentDistribution]) -> None:
    mixture, (x, y) = mixture_of(K, procedure), data()
    loss = TraceMixture_ELBO().differentiable_loss(mixture, None, x, y)
    exact = -mixture.marginal_log_likelihood(x, y).sum()
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients_of(loss, mixture), gradients_of(exact, mixture)):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("procedure", [IndependentRouting, DependentRounding, CapacitySkip])
def test_the_gradient_of_a_draw_is_that_of_the_responsibilities(procedure: type[AssignmentDistribution]) -> None:
    mixture, (x, y) = mixture_of(2, procedure, capacity_factor=1.0), data()
    pyro.set_rng_seed(3)
    loss = TraceMixture_ELBO().differentiable_loss(mixture, None, x, y)
    pyro.set_rng_seed(3)
    routing = mixture.routing(x)
    value = routing.sample()
    f, log_p = mixture.log_likelihoods(x, y), mixture.router(x).log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    expected_value = torch.zeros((), dtype=torch.float64)
    weights, kappa = routing.importance_weights(value), routing.keep_probability(value)
    for i in range(6):
        kept = [(s, int(value[s, i])) for s in range(2) if value[s, i] >= 0]
        if not kept:
            continue
        joint = torch.stack([weights[s, i].log() + f[i, e].detach() for s, e in kept])
        share = joint.softmax(0)
        expected_value = expected_value + (kappa[i].log() + joint.logsumexp(0)) / kappa[i]
        total = total + sum(r * (log_p[i, e] + f[i, e]) for r, (_, e) in zip(share, kept)) / kappa[i]
    torch.testing.assert_close(loss, -expected_value)
    for one, other in zip(gradients_of(loss, mixture), gradients_of(-total, mixture)):
        torch.testing.assert_close(one, other)


def test_scale_and_padding_and_batches() -> None:
    mixture, (x, y) = mixture_of(K), data(2)
    elbo = TraceMixture_ELBO()
    alone = [elbo.loss(mixture, None, *pair) for pair in zip(x, y)]

    def batched(x: Tensor, y: Tensor, mask: Tensor | None = None) -> None:
        with pyro.plate("batch", len(x), dim=-2):
            mixture(x, y, mask)

    assert TraceMixture_ELBO().loss(batched, None, x, y) == pytest.approx(sum(alone), rel=1e-12)
    assert elbo.loss(pyro.poutine.scale(mixture, 3.0), None, x[0], y[0]) == pytest.approx(3 * alone[0], rel=1e-12)
    mask = torch.tensor([True] * 4 + [False] * 2)
    junk = x[0].clone()
    junk[4:] = torch.nan
    padded = elbo.loss(mixture, None, junk, y[0], mask)
    assert padded == pytest.approx(elbo.loss(mixture, None, x[0, :4], y[0, :4]), rel=1e-12)


def test_a_subsampled_plate_scales_the_bound() -> None:
    """The mean over all subsamples of a partition is the loss of the whole."""
    mixture, (x, y) = mixture_of(K), data()

    def model(rows: Tensor) -> None:
        out = mixture.experts.dense(x[rows]).squeeze(-1).mT
        log_p = mixture.router(x[rows]).log_softmax(-1).mT
        routing = IndependentRouting(mixture.router(x[rows]), num_selected=K)
        pyro.sample("z", routing)
        with pyro.plate("data", 6, subsample=rows):
            likelihood = SelectedMixture(log_p, log_p, pyro.distributions.Normal(out, 0.5))
            pyro.sample("y", likelihood, obs=y[rows])

    whole = -mixture.marginal_log_likelihood(x, y).sum().item()
    parts = [TraceMixture_ELBO().loss(model, None, torch.tensor(rows)) for rows in ([0, 1], [2, 3], [4, 5])]
    assert sum(parts) / 3 == pytest.approx(whole, rel=1e-12)


def test_particles_vectorised_or_not() -> None:
    mixture, (x, y) = mixture_of(K), data()
    exact = -mixture.marginal_log_likelihood(x, y).sum().item()
    for vectorize in (False, True):
        elbo = TraceMixture_ELBO(num_particles=3, vectorize_particles=vectorize, max_plate_nesting=1)
        assert elbo.loss(mixture, None, x, y) == pytest.approx(exact, rel=1e-12)
        assert elbo.loss_and_grads(mixture, None, x, y) == pytest.approx(exact, rel=1e-12)


@pytest.mark.slow
def test_drawn_observations_come_from_the_mixture() -> None:
    mixture, (x, _) = mixture_of(2, CapacitySkip, capacity_factor=1.0), data()
    with torch.no_grad():
        y = torch.stack([mixture(x) for _ in range(3000)])
        worst, index = deviation(y, mixture.predict(x).mean).worst()
    assert worst < 5, index


def test_one_expert_has_a_value_but_no_gradient() -> None:
    mixture, (x, y) = mixture_of(1), data()
    elbo = TraceMixture_ELBO()
    assert elbo.loss(mixture, None, x, y) > -mixture.marginal_log_likelihood(x, y).sum().item() - 50
    for method in (elbo.loss_and_grads, elbo.differentiable_loss):
        with pytest.raises(NotImplementedError, match=r"num_selected=1 of 3 experts.*TraceRouting_ELBO"):
            method(mixture, None, x, y)


def test_models_without_the_bound_are_refused() -> None:
    x, y = data()
    with pytest.raises(ValueError, match=r"wants an assignment site with num_selected >= 2"):
        TraceMixture_ELBO().loss(mixture_of(None), None, x, y)
    mixture = mixture_of(2)
    with pytest.raises(ValueError, match="TraceMixture_ELBO"):
        Trace_ELBO().loss_and_grads(mixture, lambda x, y: None, x, y)
    with pytest.raises(ValueError, match=r"site 'y' has a SelectedMixture, .* TraceMixture_ELBO"):
        TraceBalanced_ELBO().loss(mixture, None, x, y)

    def no_mixture(x: Tensor, y: Tensor) -> None:
        pyro.sample("z", IndependentRouting(torch.zeros(6, K), num_selected=2))
        with pyro.plate("data", 6):
            pyro.sample("y", pyro.distributions.Normal(0.0, 1.0).expand([6]), obs=y)

    with pytest.raises(ValueError, match="no site has a SelectedMixture"):
        TraceMixture_ELBO().loss(no_mixture, None, x, y)


def test_shapes_that_do_not_fit() -> None:
    normal = pyro.distributions.Normal(torch.zeros(2, 5), 1.0)
    with pytest.raises(ValueError, match=r"log_weights must have shape \(2, 5\)"):
        SelectedMixture(torch.zeros(5), torch.zeros(2, 5), normal)
    with pytest.raises(ValueError, match=r"keep_probability must have shape \(5,\)"):
        SelectedMixture(torch.zeros(2, 5), torch.zeros(2, 5), normal, keep_probability=torch.ones(2, 5))
    with pytest.raises(NotImplementedError, match="scores observations only"):
        SelectedMixture(torch.zeros(2, 5), torch.zeros(2, 5), normal).sample()
