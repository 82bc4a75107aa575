"""Whatever stands in padding changes nothing: not a value, not a gradient, and no number of datapoints."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO
from prob_moe.estimators.sites import per_datapoint
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.padding import fill
from prob_moe.rules import load_balancing_loss, z_loss
from prob_moe.testing import central_difference

PROCEDURES = [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding]
MASK = torch.tensor([[True] * 4 + [False] * 2, [False] + [True] * 5, [True] * 6])


class Cost(nn.Linear):
    """A baseline network."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze(-1)


def normal(out: Tensor) -> dist.Normal:
    return dist.Normal(out[..., 0], 0.7)


def vectors(out: Tensor) -> dist.Independent:
    return dist.Normal(out, 0.7).to_event(1)


def classes(out: Tensor) -> dist.Categorical:
    return dist.Categorical(logits=out)


def positive(out: Tensor) -> dist.LogNormal:
    return dist.LogNormal(out[..., 0], 0.7)


OBSERVATIONS: dict[Callable, tuple[Tensor, list[float]]] = {
    normal: (torch.linspace(-1, 1, 18).view(3, 6), [0.5, torch.nan]),
    vectors: (torch.linspace(-1, 1, 36).view(3, 6, 2), [0.5, torch.nan]),
    classes: (torch.arange(18).view(3, 6) % 2, [0, -100]),
    positive: (torch.linspace(0.1, 1, 18).view(3, 6), [0.5, -1.0]),
}


def mixture_of(assignment: type[AssignmentDistribution], likelihood: Callable, **options: object) -> MixtureOfExperts:
    torch.manual_seed(1)
    experts = BatchedExperts(2, 3, 4, 2)
    options = {"capacity_factor": 1.5, "load_balancing": 0.5, "baseline": Cost(3, 1)} | options
    return MixtureOfExperts(nn.Linear(3, 2), experts, likelihood, assignment=assignment, **options).double()


def in_plate(mixture: MixtureOfExperts) -> Callable:
    def model(*args: Tensor) -> None:
        with pyro.plate("batches", 3, dim=-2):
            mixture(*args)

    return model


def everything(mixture: MixtureOfExperts, x: Tensor, y: Tensor) -> list[Tensor]:
    """Values, then gradients, of all that takes a mask."""
    torch.manual_seed(2)
    mixture.zero_grad()
    model = in_plate(mixture)
    values = [torch.tensor(TraceRouting_ELBO(max_plate_nesting=2).loss_and_grads(model, None, x, y, MASK))]
    options = {"use_leave_one_out_baseline": True, "use_decaying_avg_baseline": True}
    balanced = in_plate(mixture_of(CapacitySkip, mixture.likelihood, baseline=options))
    elbo = TraceBalanced_ELBO(num_particles=2, max_plate_nesting=2)
    values.append(torch.tensor(elbo.loss_and_grads(balanced, None, x, y, MASK)))
    for value in (
        mixture.marginal_log_likelihood(x, y, MASK),
        mixture.router_objective(x, y, MASK),
        mixture.responsibilities(x, y, MASK).square(),
        mixture.responsibilities(x, mask=MASK).square(),
    ):
        value.sum().backward()
        values.append(value.detach())
    present = mixture.predict(x, mask=MASK)
    legal = OBSERVATIONS[mixture.likelihood][0].to(y.dtype)
    log_prob = present.log_prob(legal)[MASK]
    log_prob.sum().backward()
    return [*values, log_prob.detach(), *(p.grad.clone() for p in mixture.parameters())]


@pytest.mark.parametrize("assignment", PROCEDURES)
@pytest.mark.parametrize("likelihood", OBSERVATIONS)
def test_junk_in_padding_reaches_nothing(assignment: type[AssignmentDistribution], likelihood: Callable) -> None:
    y, junk = OBSERVATIONS[likelihood]
    y = y.double() if y.is_floating_point() else y.clone()
    mixture, results = mixture_of(assignment, likelihood), []
    for in_x, in_y in zip([0.0, torch.nan], junk):
        x = torch.linspace(-2, 2, 54, dtype=torch.float64).view(3, 6, 3).sin()
        x[~MASK], y[~MASK] = in_x, in_y
        results.append(everything(mixture, x, y))
    for clean, dirty in zip(*results):
        assert clean.isfinite().all()
        assert torch.equal(clean, dirty)


def test_rows_count_as_without_padding() -> None:
    mixture, x = mixture_of(CapacitySkip, normal), torch.randn(3, 6, 3, dtype=torch.float64)
    y = torch.randn(3, 6, dtype=torch.float64)
    rows = MASK[1]
    torch.testing.assert_close(
        mixture.marginal_log_likelihood(x[1], y[1], rows)[rows], mixture.marginal_log_likelihood(x[1, rows], y[1, rows])
    )
    torch.testing.assert_close(
        mixture.router_objective(x, y, MASK)[1], mixture.router_objective(x[1, rows], y[1, rows])
    )
    assert (mixture.marginal_log_likelihood(x, y, MASK)[~MASK] == 0).all()
    assert (mixture.responsibilities(x, y, MASK)[~MASK] == 0).all()


@pytest.mark.parametrize("kind", ["value", "network"])
def test_a_baseline_by_hand_may_have_junk_in_padding(kind: str) -> None:
    mask, network, gradients = torch.arange(5) < 3, Cost(2, 1), []
    for junk in (0.0, torch.nan):
        inputs = torch.where(mask.unsqueeze(-1), torch.tensor([0.3, -0.4]), junk)
        logits = torch.zeros(5, 2, requires_grad=True)
        baseline: dict[str, object] = {"baseline_value": inputs[:, 0]}
        if kind == "network":
            baseline = {"nn_baseline": network, "nn_baseline_input": inputs}

        def model(logits: Tensor = logits, baseline: dict = baseline) -> None:
            z = pyro.sample("z", CapacitySkip(logits, capacity=2, mask=mask), infer={"baseline": baseline})
            with pyro.plate("data", 5, dim=-1), pyro.poutine.mask(mask=z >= 0):
                pyro.factor("f", torch.arange(5.0) + per_datapoint(z, -1))

        torch.manual_seed(0)
        network.zero_grad()
        TraceRouting_ELBO(num_particles=2).loss_and_grads(model, None)
        gradients.append([logits.grad, *(p.grad for p in network.parameters() if p.grad is not None)])
    for clean, dirty in zip(*gradients):
        assert torch.equal(clean, dirty)
        assert dirty.isfinite().all()


# Load balancing ------------------------------------------------------------------------------------------------------


def load_balancing(mixture: MixtureOfExperts, *args: Tensor) -> Tensor:
    trace = pyro.poutine.trace(in_plate(mixture) if args[0].dim() > 2 else mixture).get_trace(*args)
    trace.compute_log_prob(lambda name, site: name == "load_balancing")
    return trace.nodes["load_balancing"]["log_prob"]


@pytest.mark.parametrize("assignment", PROCEDURES)
def test_load_balancing_does_not_grow_with_padding(assignment: type[AssignmentDistribution]) -> None:
    mixture, x = mixture_of(assignment, normal), torch.randn(6, 3, dtype=torch.float64)
    alone = load_balancing(mixture, x)
    for rows in (6, 54):
        padded = torch.cat([x, torch.full((rows, 3), torch.nan, dtype=x.dtype)])
        torch.testing.assert_close(load_balancing(mixture, padded, None, torch.arange(6 + rows) < 6), alone)


@pytest.mark.parametrize("assignment", PROCEDURES)
def test_load_balancing_in_a_batch_is_that_of_its_elements(assignment: type[AssignmentDistribution]) -> None:
    mixture, x = mixture_of(assignment, normal), torch.randn(3, 6, 3, dtype=torch.float64)
    together = load_balancing(mixture, x, None, MASK)
    assert together.shape == (3, 1)
    alone = [load_balancing(mixture, x[b, MASK[b]]) for b in range(3)]
    torch.testing.assert_close(together.squeeze(-1), torch.stack(alone))


@pytest.mark.parametrize("assignment", PROCEDURES)
def test_load_balancing_scales_with_everything_else(assignment: type[AssignmentDistribution]) -> None:
    mixture, x, y = mixture_of(assignment, normal), *torch.randn(2, 6, 3, dtype=torch.float64)
    x, y = torch.stack([x, y]), torch.randn(2, 6, dtype=torch.float64)
    losses = []
    for scale in (1.0, 4.0):
        torch.manual_seed(0)
        model = pyro.poutine.scale(lambda: mixture(x[0], y[0]), scale)
        losses.append(TraceRouting_ELBO(num_particles=2, vectorize_particles=True).loss(model, None))
    assert losses[1] == pytest.approx(4 * losses[0])


def test_expected_shares_have_the_expected_gradient() -> None:
    """Of independent choices, enumerated; and by finite differences of the penalty with the shares held fixed."""
    logits = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.2, 0.1], [9.0, -9.0]], dtype=torch.float64)
    mask = torch.tensor([True, True, True, False])
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(load_balancing_loss(leaf, mask=mask), leaf)
    routing = IndependentRouting(logits[:3])
    values = routing.enumerate_support()
    leaf = logits.clone().requires_grad_()
    padded = torch.cat([values, torch.zeros(len(values), 1, dtype=torch.long)], -1)
    counted = load_balancing_loss(leaf, padded, mask)
    (exact,) = torch.autograd.grad((routing.log_prob(values).exp() * counted).sum(), leaf)
    torch.testing.assert_close(gradient, exact)
    shares = logits[:3].softmax(-1).mean(0)
    direction = torch.randn_like(logits)
    slope = central_difference(lambda phi: 2 * (shares * phi[:3].softmax(-1).mean(0)).sum(), logits, direction)
    assert slope.agrees_with(float((gradient * direction).sum())), slope


@pytest.mark.parametrize("loss", [load_balancing_loss, z_loss])
def test_losses_of_routers_ignore_junk_and_check_the_mask(loss: Callable) -> None:
    logits = torch.randn(3, 6, 2, dtype=torch.float64)
    logits[~MASK] = torch.nan
    leaf = logits.clone().requires_grad_()
    total = loss(leaf, mask=MASK)
    total.sum().backward()
    assert leaf.grad.isfinite().all()
    torch.testing.assert_close(total[1], loss(logits[1, MASK[1]]))
    with pytest.raises(ValueError, match=r"mask of shape \(3, 6\) does not broadcast to .* \(3, 1, 6\)"):
        loss(logits.unsqueeze(-3), mask=MASK)


# Replacements --------------------------------------------------------------------------------------------------------


def test_where_all_is_padding_observations_are_zero() -> None:
    y = torch.full((2, 3), torch.nan)
    assert (fill(y, torch.zeros(2, 3, dtype=torch.bool)) == 0).all()
    y = torch.tensor([[[7, 7], [1, 2]]])
    assert fill(y, torch.tensor([False, True]), 1).tolist() == [[[1, 2], [1, 2]]]
