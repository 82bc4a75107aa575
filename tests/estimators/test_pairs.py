"""The router objective from several experts per datapoint: pairs, and what stands in for them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    IndependentRouting,
    SelectedMixture,
)
from prob_moe.distributions.sets import entries_of
from prob_moe.distributions.support import router_choices
from prob_moe.estimators import TraceRouting_ELBO, selected_surrogate
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.testing import exact_router_objective, gradient_report
from prob_moe.testing.statistics import deviation
from tests.estimators.replicas import exact_router_gradient


@contextmanager
def without_pairs_it_is_said(expected: bool) -> Iterator[None]:
    if expected:
        with pytest.warns(UserWarning, match=r"sum_j w_j f_j grad log p_j, unbiased but noisier"):
            yield
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield


def problem(n: int, k: int) -> tuple[Tensor, Tensor]:
    return 1.5 * torch.randn(n, k, dtype=torch.float64), 2 * torch.randn(n, k, dtype=torch.float64) - 3


def of_draws(routing: AssignmentDistribution, value: Tensor, leaf: Tensor, f: Tensor, **changes: Any) -> Tensor:
    """The surrogate of every draw, (*sample, n), with the gradient of ``leaf``, (*sample, n, k) or (n, k)."""
    m = routing.num_selected
    log_p = entries_of(leaf.log_softmax(-1), router_choices(value), m)
    weights = routing.importance_weights(value)
    pairs = None if isinstance(routing, DependentRounding) else routing.pair_weights(value)
    cost = entries_of(f.expand(*value.shape[:-2], *f.shape), router_choices(value), m)
    return selected_surrogate(*{"cost": cost, "weight": weights, "log_p": log_p, "pairs": pairs, **changes}.values())


#: n, k, m, and the capacity where there is one
SIZES = [(3, 3, 2, None), (2, 4, 3, None), (3, 3, 2, 1), (4, 3, 2, 2), (3, 4, 2, 1), (3, 4, 3, 2), (3, 3, 3, None)]


@pytest.mark.parametrize(("n", "k", "m", "capacity"), SIZES)
def test_expectation_by_enumeration(n: int, k: int, m: int, capacity: int | None) -> None:
    logits, f = problem(n, k)
    leaf = logits.clone().requires_grad_()
    if capacity is None:
        routing: AssignmentDistribution = IndependentRouting(logits, num_selected=m)
    else:
        routing = CapacitySkip(logits, capacity=capacity, num_selected=m)
    values = routing.enumerate_support()
    probability = routing.log_prob(values).exp().unsqueeze(-1)

    def expected(**changes: Any) -> tuple[Tensor, Tensor]:
        total = (probability * of_draws(routing, values, leaf, f, **changes)).sum()
        return total.detach(), torch.autograd.grad(total, leaf)[0]

    value, gradient = expected()
    exact = exact_router_gradient(logits, f)
    torch.testing.assert_close(value, (logits.softmax(-1) * f).sum(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-10)
    # Without pairs it is unbiased too.
    torch.testing.assert_close(expected(pairs=None)[1], exact, rtol=1e-10, atol=1e-10)
    if m < k:
        # As if a pair were two single experts.
        weights = routing.importance_weights(values)
        wrong = weights.unsqueeze(-2) * weights.unsqueeze(-3)
        assert (expected(pairs=wrong)[1] - exact).abs().max() > 1e-3
        assert (expected(pairs=None, weight=torch.full_like(weights, 1 / m))[1] - exact).abs().max() > 1e-3


@pytest.mark.parametrize(("n", "k", "m", "capacity"), [(4, 3, 2, 3), (4, 4, 3, None), (4, 4, 2, 2)])
def test_rounding_by_draws(n: int, k: int, m: int, capacity: int | None) -> None:
    draws = 20_000
    logits, f = problem(n, k)
    routing = DependentRounding(logits, capacity=capacity, num_selected=m)
    values = routing.sample((draws,))
    leaf = logits.expand(draws, n, k).clone().requires_grad_()
    exact = exact_router_gradient(logits, f)
    found = torch.autograd.grad(of_draws(routing, values, leaf, f).sum(), leaf)[0]
    worst, index = deviation(found, exact).worst()
    assert worst < 5, index
    even = torch.full(values.shape, 1 / m, dtype=torch.float64)
    biased = torch.autograd.grad(of_draws(routing, values, leaf, f, weight=even).sum(), leaf)[0]
    assert deviation(biased, exact).worst()[0] > 10


def test_pairs_are_less_noisy() -> None:
    logits, f = problem(3, 4)
    routing = IndependentRouting(logits, num_selected=2)
    leaf = logits.expand(4000, 3, 4).clone().requires_grad_()
    values = routing.sample((4000,))
    variances = []
    for changes in ({}, {"pairs": None}):
        gradient = torch.autograd.grad(of_draws(routing, values, leaf, f, **changes).sum(), leaf)[0]
        variances.append(float(gradient.var(0).sum()))
    assert variances[0] < variances[1]


def test_what_was_dropped_counts_nothing() -> None:
    cost = torch.tensor([[-torch.inf], [torch.nan], [-1.0]])
    weight = torch.tensor([[0.0], [0.0], [0.5]])
    log_p = torch.zeros(3, 1, requires_grad=True)
    for pairs in (None, torch.zeros(3, 3, 1)):
        surrogate = selected_surrogate(cost, weight, log_p, pairs)
        torch.testing.assert_close(surrogate.detach(), torch.tensor([-0.5]))
        gradient = torch.autograd.grad(surrogate.sum(), log_p)[0]
        torch.testing.assert_close(gradient, torch.tensor([[0.0], [0.0], [0.0 if pairs is not None else -0.5]]))


# Through Pyro ---------------------------------------------------------------------------------------------------------

N, K = 6, 3


def mixture_of(m: int | None, procedure: Any = IndependentRouting, **kwargs: Any) -> MixtureOfExperts:
    return MixtureOfExperts(
        nn.Linear(2, K).double(),
        BatchedExperts(K, 2, None, 1, dtype=torch.float64),
        lambda out: pyro.distributions.Normal(out.squeeze(-1), 1.0),
        assignment=procedure,
        num_selected=m,
        **{"capacity_factor": 1.0, **kwargs},
    )


def data(*batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*batch, N, 2, dtype=torch.float64), torch.randn(*batch, N, dtype=torch.float64)


@pytest.mark.parametrize("procedure", [IndependentRouting, CapacitySkip, DependentRounding])
def test_a_mixture_of_experts(procedure: type[AssignmentDistribution]) -> None:
    mixture, (x, y) = mixture_of(2, procedure), data()
    with without_pairs_it_is_said(procedure is DependentRounding):
        report = gradient_report(
            *(mixture, None, TraceRouting_ELBO(), x, y),
            exact=lambda x, y: exact_router_objective(mixture, x, y),
            parameters=mixture,
            num_samples=400,
        )
    assert report.unbiased, report


def in_batches(mixture: MixtureOfExperts) -> Callable[..., None]:
    def model(x: Tensor, y: Tensor, mask: Tensor | None = None) -> None:
        with pyro.plate("batch", len(x), dim=-2):
            mixture(x, y, mask)

    return model


MASK = torch.tensor([True] * 4 + [False] * 2)

#: the ELBO's options, how the mixture is run, data, and by what the objective is multiplied
PROGRAMS: dict[str, tuple] = {
    "plain": ({}, lambda mixture: mixture, lambda: data(), 1),
    "scaled": ({}, lambda mixture: pyro.poutine.scale(mixture, 3.0), lambda: data(), 3),
    "padding": ({}, lambda mixture: mixture, lambda: (*data(), MASK), 1),
    "batches": ({}, in_batches, lambda: data(2), 1),
    "batches with padding": ({}, in_batches, lambda: (*data(2), torch.stack([MASK, ~MASK])), 1),
    "particles": ({"num_particles": 2}, lambda mixture: mixture, lambda: data(), 1),
    "vectorised": (
        *({"num_particles": 2, "vectorize_particles": True, "max_plate_nesting": 2}, in_batches, lambda: data(2), 1),
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
@pytest.mark.parametrize("weighted_pairs", [True, False])
def test_with_all_experts_it_is_exact(case: str, weighted_pairs: bool) -> None:
    options, program, make_data, factor = PROGRAMS[case]
    # All weights are p, so a single draw gives the objective; without pairs, its value.
    procedure = IndependentRouting if weighted_pairs else DependentRounding
    mixture, args = mixture_of(K, procedure, capacity_factor=float(K)), make_data()
    with without_pairs_it_is_said(not weighted_pairs):
        loss = TraceRouting_ELBO(**options).differentiable_loss(program(mixture), None, *args)
    exact = -factor * mixture.router_objective(*args).sum()
    torch.testing.assert_close(loss, exact, rtol=1e-12, atol=1e-12)
    if weighted_pairs:
        parameters = list(mixture.parameters())
        for one, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(exact, parameters)):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_report_on_sets_with_padding() -> None:
    mixture, (x, y) = mixture_of(2), data(2)
    report = gradient_report(
        *(in_batches(mixture), None, TraceRouting_ELBO(), x, y, torch.stack([MASK, ~MASK])),
        exact=lambda x, y, mask: mixture.router_objective(x, y, mask).sum(),
        parameters=mixture,
        num_samples=200,
    )
    assert report.unbiased, report


def test_other_sites_and_subsamples() -> None:
    """What else stands in the plate is outside of the sum; the mean over a partition's subsamples is the whole."""
    mixture, (x, y) = mixture_of(K), data()

    def model(rows: Tensor) -> None:
        out = mixture.experts.dense(x[rows]).squeeze(-1).mT
        routing = IndependentRouting(mixture.router(x[rows]), num_selected=K)
        z = pyro.sample("z", routing)
        with pyro.plate("data", N, subsample=rows):
            normal = pyro.distributions.Normal(out, 1.0)
            log_p = routing.router_log_prob(z)
            masked = SelectedMixture(log_p, log_p, normal).mask(y[rows] > 0)
            pyro.sample("y", masked, obs=y[rows])
            pyro.factor("other", x[rows, 0])

    parts = [TraceRouting_ELBO().loss(model, None, torch.tensor(rows)) for rows in ([0, 1], [2, 3], [4, 5])]
    objective = (mixture.responsibilities(x) * mixture.log_likelihoods(x, y)).sum(-1)
    assert sum(parts) / 3 == pytest.approx(-(objective * (y > 0) + x[:, 0]).sum().item(), rel=1e-12)


def test_one_of_a_set_is_no_pair() -> None:
    mixture, (x, y) = mixture_of(1), data()
    elbo = TraceRouting_ELBO()
    with pytest.warns(UserWarning, match=r"site 'assignment': num_selected=1 makes no pairs"):
        elbo.loss_and_grads(mixture, None, x, y)
    elbo.loss_and_grads(mixture, None, x, y)  # said once


@pytest.mark.parametrize(
    ("make", "elbo", "guided", "message"),
    [
        (dict(baseline={"use_decaying_avg_baseline": True}), {}, False, "'assignment' selects several .* no baseline"),
        ({}, {"weighted": False}, False, "weighted=False has no meaning for assignment site 'assignment'"),
        ({}, {}, True, "the guide draws assignment site 'assignment', .* or use TraceMixture_ELBO"),
    ],
)
def test_refusals(make: dict, elbo: dict, guided: bool, message: str) -> None:
    mixture, (x, y) = mixture_of(2, **make), data()

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("assignment", mixture.routing(x))

    with pytest.raises(ValueError, match=message):
        TraceRouting_ELBO(**elbo).loss_and_grads(mixture, guide if guided else None, x, y)
