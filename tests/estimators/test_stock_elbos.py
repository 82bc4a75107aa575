"""Pyro's own ELBOs stop where they would train an assignment that the guide does not draw, and only there."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    SVI,
    Importance,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import Tensor, nn

from prob_moe.distributions import AssignmentDistribution, CapacitySkip, GumbelMatching, IndependentRouting
from prob_moe.estimators import RIGHT_WAYS, TraceBalanced_ELBO, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts

STOCK = [Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, RenyiELBO]
X, Y = torch.linspace(-1, 1, 6).unsqueeze(-1), torch.linspace(0, 1, 6)


def mixture(assignment: type[AssignmentDistribution] = CapacitySkip, **options: object) -> MixtureOfExperts:
    torch.manual_seed(0)
    experts = BatchedExperts(2, 1, None, 1)

    def likelihood(out: Tensor) -> dist.Normal:
        return dist.Normal(out.squeeze(-1), 0.5)

    return MixtureOfExperts(nn.Linear(1, 2), experts, likelihood, assignment=assignment, capacity_factor=1.0, **options)


def by_hand(x: Tensor, y: Tensor | None = None, **infer: str) -> None:
    """Another model with an assignment site, by a matching in a plate of two batches."""
    with pyro.plate("batches", 2, dim=-2):
        z = pyro.sample("assignment", GumbelMatching(x.repeat(2, 1, 1, 2), capacity=3), infer=infer).squeeze(-2)
        with pyro.plate("data", 6, dim=-1):
            pyro.sample("y", dist.Normal(z.float(), 1.0), obs=None if y is None else y.expand(2, 6))


def no_guide(x: Tensor, y: Tensor) -> None:
    pass


def drawing_guide(x: Tensor, y: Tensor | None = None) -> None:
    pyro.sample("assignment", IndependentRouting(x.repeat(1, 2)))


@pytest.mark.parametrize("elbo", STOCK)
@pytest.mark.parametrize("model", [mixture(), by_hand])
@pytest.mark.parametrize("vectorize", [False, True])
def test_a_stock_elbo_stops_and_names_the_right_ways(elbo: type, model: Callable, vectorize: bool) -> None:
    loss = elbo(num_particles=2, vectorize_particles=vectorize, max_plate_nesting=2)
    svi = SVI(model, no_guide, pyro.optim.Adam({"lr": 0.1}), loss)
    with pytest.raises(ValueError, match=r"the guide does not.*TraceRouting_ELBO.*TraceBalanced_ELBO") as error:
        svi.step(X, Y)
    assert RIGHT_WAYS in str(error.value)


def test_so_do_what_is_built_like_them() -> None:
    """A guide that draws another site, and importance sampling with a guide that leaves the assignment."""
    with pytest.raises(ValueError, match="the guide does not"):
        Trace_ELBO().loss_and_grads(mixture(), pyro.poutine.block(mixture(), expose=["y"]), X, Y)
    with pytest.raises(ValueError, match="the guide does not"):
        Importance(mixture(), no_guide, num_samples=2).run(X, Y)


@pytest.mark.parametrize("elbo", STOCK[:2])
def test_right_uses_stay_quiet(elbo: type) -> None:
    model, z = mixture(IndependentRouting), torch.tensor([0, 1, 0, 1, 0, 1])
    elbo().loss_and_grads(mixture(), pyro.poutine.block(mixture(), expose=["assignment"]), X, Y)
    elbo().loss_and_grads(model, drawing_guide, X, Y)
    elbo().loss_and_grads(pyro.condition(model, {"assignment": z}), no_guide, X, Y)


@pytest.mark.parametrize("nesting", [1, float("inf")])
def test_enumeration_stays_quiet_and_is_exact(nesting: float) -> None:
    model = mixture(IndependentRouting)
    elbo = TraceEnum_ELBO(max_plate_nesting=nesting)
    loss = elbo.loss(pyro.infer.config_enumerate(model), no_guide, X, Y)
    assert loss == pytest.approx(-model.marginal_log_likelihood(X, Y).sum().item(), rel=1e-5)


@pytest.mark.parametrize("model", [mixture(), by_hand])
def test_predictions_and_traces_stay_quiet(model: Callable) -> None:
    def guide(x: Tensor, y: Tensor | None = None) -> None:
        pyro.sample("other", dist.Normal(0.0, 1.0))

    assert Predictive(model, num_samples=2)(X)["y"].shape[0] == 2
    assert Predictive(model, guide=guide, num_samples=2)(X)["y"].shape[0] == 2
    trace = pyro.poutine.trace(guide).get_trace(X)
    assert "y" in pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(X)


@pytest.mark.parametrize("elbo", [TraceRouting_ELBO, TraceBalanced_ELBO])
@pytest.mark.parametrize("vectorize", [False, True])
def test_our_elbos_take_no_guide(elbo: type, vectorize: bool) -> None:
    options = {"num_particles": 2, "vectorize_particles": vectorize}
    svi = SVI(mixture(), None, pyro.optim.Adam({"lr": 0.01}), elbo(**options))
    assert svi.step(X, Y) > 0
    assert svi.evaluate_loss(X, Y) > 0
    mask = torch.arange(6) < 4
    assert svi.step(X, Y, mask) > 0
    assert elbo(**options)(mixture(), None)(X, Y).requires_grad
    observed = pyro.condition(mixture(), {"assignment": torch.tensor([0, 1, 0, 1, 0, 1])})
    assert TraceBalanced_ELBO(**options).loss_and_grads(observed, None, X, Y) > 0
