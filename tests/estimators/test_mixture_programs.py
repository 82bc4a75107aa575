"""The mixture bound in networks and with guides: earlier layers, and a guide that selects the experts."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from models.stacked import StackedMixture
from prob_moe.distributions import CapacitySkip, DependentRounding, IndependentRouting, SelectedMixture
from prob_moe.distributions.choices import OwnChoices
from prob_moe.distributions.sets import entries_of
from prob_moe.distributions.support import router_choices
from prob_moe.estimators import DecayingAverage, LeaveOneOut, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.testing import exact_mixture_bound, exact_mixture_objective, gradient_report
from tests.estimators.held import Held, expectation
from tests.estimators.table import Table

# A guide that selects ----------------------------------------------------------------------------------------------

N, K, M = 3, 3, 2
GUIDES = [(IndependentRouting, {}), (CapacitySkip, {"capacity": 1}), (CapacitySkip, {"capacity": 2})]


def leaves_of(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def proposal(p_logits: Tensor, q_logits: Tensor, f: Tensor, law: Callable) -> tuple[Callable, Callable]:
    """A model whose own procedure is another one than that of the guide."""

    def model() -> None:
        routing = DependentRounding(p_logits, num_selected=M)
        z = pyro.sample("z", routing)
        likelihood = SelectedMixture(
            routing.log_importance_weights(z),
            routing.router_log_prob(z),
            Table(entries_of(f, router_choices(z), M)),
            keep_probability=routing.keep_probability(z),
        )
        with pyro.plate("data", N):
            pyro.sample("y", likelihood, obs=torch.zeros(N, dtype=torch.float64))

    def guide() -> None:
        pyro.sample("z", law(q_logits, num_selected=M))

    return model, guide


def exact_with_proposal(p_logits: Tensor, f: Tensor, guide: OwnChoices) -> tuple[Tensor, Tensor]:
    """By loops: the bound with the guide's weights held fixed, and what the guide climbs, sum of omega log q."""
    log_p, log_q = p_logits.log_softmax(-1), guide.logits.log_softmax(-1)
    bound, climbed = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for z in guide.enumerate_support():
        probability = guide.log_prob(z).exp().detach()
        inclusion = (guide.router_log_prob(z).exp() / guide.importance_weights(z)).detach()
        kappa = guide.keep_probability(z)
        for i in range(N):
            kept = [(s, int(z[s, i])) for s in range(M) if z[s, i] >= 0]
            if not kept:
                continue
            joint = torch.stack([log_p[i, e] - inclusion[s, i].log() + f[i, e] for s, e in kept])
            share = joint.softmax(0).detach()
            bound = bound + probability / kappa[i] * (kappa[i].log() + joint.logsumexp(0))
            climbed = climbed + probability / kappa[i] * sum(w * log_q[i, e] for w, (_, e) in zip(share, kept))
    return bound, climbed


@pytest.mark.parametrize(("law", "options"), GUIDES)
def test_a_guide_proposes_and_learns_by_wake_phi(law: type[OwnChoices], options: dict) -> None:
    p_logits, q_logits, f = leaves = leaves_of((N, K), (N, K), (N, K))
    held = Held(law, **options)
    model, guide = proposal(*leaves, held)  # type: ignore[call-arg]
    support = law(q_logits, num_selected=M, **options).enumerate_support()
    draws = (([(held, z)], ["z"]) for z in support)
    value, p_gradient, q_gradient, f_gradient = expectation(TraceMixture_ELBO(), model, guide, leaves, draws)
    bound, climbed = exact_with_proposal(p_logits, f, law(q_logits, num_selected=M, **options))
    torch.testing.assert_close(value, bound)
    for found, exact in zip((p_gradient, f_gradient), torch.autograd.grad(bound, (p_logits, f))):
        torch.testing.assert_close(found, exact)
    torch.testing.assert_close(q_gradient, torch.autograd.grad(climbed, q_logits)[0])
    assert bound < (p_logits.log_softmax(-1) + f).logsumexp(-1).sum()
    # Weights of the model's router alone, as if it had drawn.
    as_model, _ = exact_with_proposal(p_logits, f, law(p_logits.detach(), num_selected=M, **options))
    assert (as_model - bound).abs() > 1e-2


def test_with_all_experts_the_guide_climbs_to_the_posterior() -> None:
    mixture, (x, y) = mixture_of(K), data()
    q_logits = torch.zeros(6, K, dtype=torch.float64, requires_grad=True)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("assignment", IndependentRouting(q_logits, num_selected=K))

    scaled = pyro.poutine.scale(mixture, 2.0)
    loss = TraceMixture_ELBO().differentiable_loss(scaled, guide, x, y)
    torch.testing.assert_close(loss, -2 * mixture.marginal_log_likelihood(x, y).sum())
    gradient = torch.autograd.grad(-loss, q_logits)[0]
    torch.testing.assert_close(gradient, 2 * (mixture.responsibilities(x, y) - 1 / K).detach())


@pytest.mark.parametrize("law", [IndependentRouting, partial(CapacitySkip, capacity=1)])
def test_the_exact_objective_of_a_program(law: Callable) -> None:
    logits, f = leaves = leaves_of((N, K), (N, K))

    def model() -> None:
        routing = law(logits, num_selected=M)
        z = pyro.sample("z", routing)
        chosen = Table(entries_of(f, router_choices(z), M))
        kappa = routing.keep_probability(z)
        likelihood = SelectedMixture(
            routing.log_importance_weights(z), routing.router_log_prob(z), chosen, keep_probability=kappa
        )
        with pyro.plate("data", N):
            pyro.sample("y", likelihood, obs=torch.zeros(N, dtype=torch.float64))

    found, exact = exact_mixture_objective(model), exact_mixture_bound(law(logits, num_selected=M), f)
    torch.testing.assert_close(found, exact)
    for one, other in zip(torch.autograd.grad(found, leaves), torch.autograd.grad(exact, leaves)):
        torch.testing.assert_close(one, other)


# Layers before -----------------------------------------------------------------------------------------------------


def mixture_of(m: int, **kwargs: Any) -> MixtureOfExperts:
    return MixtureOfExperts(
        nn.Linear(2, K).double(),
        BatchedExperts(K, 2, None, 1, dtype=torch.float64),
        lambda out: dist.Normal(out.squeeze(-1), 1.0),
        num_selected=m,
        **{"assignment": IndependentRouting, "capacity_factor": float(K), **kwargs},
    )


def data(n: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 2, dtype=torch.float64), torch.randn(n, dtype=torch.float64)


def two_layers(first: Tensor, second: Tensor, f: Tensor, one: Callable, several: Callable, **infer: Any) -> Callable:
    """
    :param first: logits (n, k1).
    :param second: logits of the second layer by expert of the first, (k1, n, k).
    :param f: log-likelihoods by expert of the first, (k1, n, k).
    """
    rows = torch.arange(first.shape[0])

    def model() -> None:
        z = pyro.sample("first", one(first), infer=infer)
        routing = several(second[router_choices(z), rows])
        s = pyro.sample("second", routing)
        chosen = entries_of(f[router_choices(z), rows], router_choices(s), M)
        likelihood = SelectedMixture(routing.log_importance_weights(s), routing.router_log_prob(s), Table(chosen))
        with pyro.plate("data", len(rows)):
            pyro.sample("y", likelihood, obs=torch.zeros(len(rows), dtype=torch.float64))

    return model


def exact_of_two_layers(first: Tensor, second: Tensor, f: Tensor) -> Tensor:
    """sum_i sum_j p_i(j) M_i(j): independent sets look at their datapoint alone."""
    p, total = first.softmax(-1), torch.zeros((), dtype=torch.float64)
    for j, i in product(range(first.shape[1]), range(first.shape[0])):
        alone = IndependentRouting(second[j, i : i + 1], num_selected=M)
        total = total + p[i, j] * exact_mixture_bound(alone, f[j, i : i + 1])
    return total


def draws_of_two_layers(leaves: list[Tensor], one: Held, several: Held) -> Iterator[tuple]:
    support = one(leaves[0].detach()).enumerate_support()
    sets = IndependentRouting(leaves[1][0].detach(), num_selected=M).enumerate_support()
    for z, s in product(support, sets):
        yield [(one, z), (several, s)], ["first", "second"]


@pytest.mark.parametrize("baseline", [None, {"baseline_value": torch.tensor(-2.0, dtype=torch.float64)}])
@pytest.mark.parametrize(("law", "options"), [(IndependentRouting, {}), (CapacitySkip, {"capacity": 2})])
def test_a_layer_before_enters_as_in_the_router_objective(
    law: type[OwnChoices], options: dict, baseline: dict | None
) -> None:
    leaves = leaves_of((N, 2), (2, N, K), (2, N, K))
    one, several = Held(law, **options), Held(IndependentRouting, num_selected=M)
    model = two_layers(*leaves, one, several, baseline=baseline)  # type: ignore[call-arg]
    found = expectation(TraceMixture_ELBO(), model, None, leaves, draws_of_two_layers(leaves, one, several))
    exact = exact_of_two_layers(*leaves)
    torch.testing.assert_close(found[0], exact.detach())
    for one_gradient, other in zip(found[1:], torch.autograd.grad(exact, leaves)):
        torch.testing.assert_close(one_gradient, other)


def test_without_the_score_of_the_layer_before_the_same_check_fails() -> None:
    leaves = leaves_of((N, 2), (2, N, K), (2, N, K))
    one, several = Held(IndependentRouting), Held(IndependentRouting, num_selected=M)
    blind = two_layers(leaves[0].detach(), *leaves[1:], one, several)  # type: ignore[call-arg]
    found = expectation(TraceMixture_ELBO(), blind, None, leaves, draws_of_two_layers(leaves, one, several))
    exact = torch.autograd.grad(exact_of_two_layers(*leaves), leaves)
    assert (found[1] - exact[0]).abs().max() > 1e-2
    torch.testing.assert_close(found[2], exact[1])


@pytest.mark.slow
@pytest.mark.parametrize("elbo", [TraceMixture_ELBO, TraceRouting_ELBO])
@pytest.mark.parametrize("baseline", [None, "decaying", pytest.param("leave-one-out", marks=pytest.mark.slow)])
def test_stacked_mixtures(elbo: type, baseline: str | None) -> None:
    """With all experts selected in the second layer, its part is exact: sum_j p_i(j) of the marginal likelihood."""
    chosen = {None: None, "decaying": DecayingAverage(), "leave-one-out": LeaveOneOut()}[baseline]
    second, (x, y) = mixture_of(K), data(4)
    model = StackedMixture(
        nn.Linear(2, 2).double(),
        BatchedExperts(2, 2, None, 2, dtype=torch.float64),
        second,
        assignment=CapacitySkip,
        capacity_factor=1.0,
        baseline=chosen,
    )

    def exact(x: Tensor, y: Tensor) -> Tensor:
        if elbo is TraceRouting_ELBO:
            return model.router_objective(x, y)
        log_p, hidden = model._paths(x, None)
        return (log_p.exp() * second.marginal_log_likelihood(hidden, y.unsqueeze(-2))).sum()

    report = gradient_report(
        *(model, None, elbo(num_particles=1 if baseline != "leave-one-out" else 2), x, y),
        exact=exact,
        parameters=model,
        num_samples=400,
    )
    assert report.unbiased, report


@pytest.mark.parametrize("elbo", [TraceMixture_ELBO, TraceRouting_ELBO])
def test_only_the_last_layer_may_select_several(elbo: type) -> None:
    def model(sizes: list[int | None]) -> None:
        for index, m in enumerate(sizes):
            z = pyro.sample(f"z{index}", IndependentRouting(torch.zeros(4, K), num_selected=m))
        with pyro.plate("data", 4):
            normal = dist.Normal(torch.zeros(M, 4), 1.0)
            pyro.sample("y", SelectedMixture(torch.zeros(M, 4), torch.zeros(M, 4) + 0 * z, normal), obs=torch.zeros(4))

    elbo().loss(model, None, [None, M])
    for sizes, named in (([M, None], r"\['z0'\]"), ([M, M], r"\['z0', 'z1'\]")):
        with pytest.raises(ValueError, match=rf"\['z0', 'z1'\], in order of execution, {named} select several"):
            elbo().loss(model, None, sizes)
