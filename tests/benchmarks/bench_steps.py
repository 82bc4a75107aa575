"""A training step of a layer of experts beside one of a dense feed-forward layer on the same datapoints.

Forward and backward, through ``TraceRouting_ELBO`` for distributions, with the rule's own loss for Switch; 4096
datapoints, 16 experts, capacity factor 1.25. The dense layer has the size of one expert, so its products are those of
all processed datapoints, and what a ratio has above 1 is router, draw, weights, moving rows, and smaller products.

Sides take turns, so that a change of the machine's pace meets all of them.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from prob_moe import (
    CapacitySkip,
    DependentRounding,
    ExpertLayer,
    GumbelMatching,
    IndependentRouting,
    MixtureOfExperts,
    TraceMixture_ELBO,
    TraceRouting_ELBO,
    record_routing,
)
from prob_moe.experts import BatchedExperts
from prob_moe.rules import Switch

N, K, D, H = 4096, 16, 128, 512
LIMITED = {"capacity_factor": 1.25}

#: by side: assignment, its options, the share of datapoints at one expert (None for what a new router does), the bar
SIDES = {
    "independent": (IndependentRouting, {}, None, "at most 2.0"),
    "independent, 40 % at one expert": (IndependentRouting, {}, 0.4, "at most 2.0"),
    "Switch": (Switch, LIMITED, None, "at most 1.8"),
    "skip": (CapacitySkip, LIMITED, None, "at most 2.1"),
    "Gumbel-Matching": (GumbelMatching, LIMITED, None, "at most 2.2"),
    "dependent rounding": (DependentRounding, LIMITED, None, "at most 2.8"),
}


def dense_loss(x, y):
    layer = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D))
    return list(layer.parameters()), lambda: (layer(x) - y).square().sum() / 2


def expert_loss(x, y, assignment, options, share):
    router = nn.Linear(D, K)
    if share is not None:
        nn.init.zeros_(router.weight)
        nn.init.zeros_(router.bias)
        router.bias.data[0] = math.log(share / (1 - share) * (K - 1))
    layer = ExpertLayer(router, BatchedExperts(K, D, H, D), assignment, **options)
    elbo = TraceRouting_ELBO()

    def model():
        out = layer(x)
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(out, 1.0).to_event(1), obs=y)

    def rule_loss():
        with record_routing() as routed:
            out = layer(x)
        return (out - y).square().sum() / 2 + N * sum(visit.loss for visit in routed.visits)

    loss = rule_loss if layer.rule is not None else lambda: elbo.differentiable_loss(model, None)
    return list(layer.parameters()), loss


@pytest.mark.parametrize("side", ["dense", *SIDES])
@pytest.mark.parametrize("turn", range(3))
def test_step(benchmark, turn, side):
    torch.set_num_threads(2)
    x, y = torch.randn(N, D, requires_grad=True), torch.randn(N, D)
    assignment, options, share, bar = SIDES.get(side, (None, {}, None, ""))
    parameters, loss = dense_loss(x, y) if side == "dense" else expert_loss(x, y, assignment, options, share)
    benchmark.group = f"step {N}×{K} ({D}→{H}→{D})"
    benchmark.extra_info.update(side=side, bar=bar, reference="dense")
    benchmark.pedantic(lambda: torch.autograd.grad(loss(), [x, *parameters]), rounds=10, warmup_rounds=2)


PROCEDURES = {"independent": IndependentRouting, "skip": CapacitySkip, "dependent rounding": DependentRounding}


@pytest.mark.parametrize("num_selected", [None, 2])
@pytest.mark.parametrize("name", PROCEDURES)
@pytest.mark.parametrize("turn", range(3))
def test_step_of_a_bound(benchmark, turn, name, num_selected):
    """The mixture bound from two experts per datapoint, beside the router objective from one; the same experts."""
    torch.set_num_threads(2)
    x, y = torch.randn(N, D, requires_grad=True), torch.randn(N, D)
    mixture = MixtureOfExperts(
        nn.Linear(D, K),
        BatchedExperts(K, D, H, D),
        lambda out: dist.Normal(out, 1.0).to_event(1),
        assignment=PROCEDURES[name],
        num_selected=num_selected,
        **LIMITED,
    )
    elbo = TraceRouting_ELBO() if num_selected is None else TraceMixture_ELBO()
    parameters = list(mixture.parameters())
    benchmark.group = f"step {N}×{K} ({D}→{H}→{D}), {name}"
    benchmark.extra_info.update(
        side="router objective, 1 expert" if num_selected is None else "mixture bound, 2 experts",
        bar="" if num_selected is None else "at most 2.2",
        reference="router objective, 1 expert",
    )
    loss = lambda: elbo.differentiable_loss(mixture, None, x, y)  # noqa: E731
    benchmark.pedantic(lambda: torch.autograd.grad(loss(), [x, *parameters]), rounds=10, warmup_rounds=2)


@pytest.mark.parametrize("num_selected", [1, 2])
@pytest.mark.parametrize("name", PROCEDURES)
def test_draw_of_sets(benchmark, name, num_selected):
    """A draw with weights, without gradient."""
    logits = torch.randn(N, K, generator=torch.Generator().manual_seed(0))
    limited = {} if name == "independent" else LIMITED

    def draw_with_weights():
        law = PROCEDURES[name](logits, num_selected=num_selected, **limited)
        law.importance_weights(law.sample())

    benchmark.group = f"draw with weights {N}×{K}, {name}"
    benchmark.extra_info.update(
        side=f"{num_selected} selected", bar="at most 2.5" if num_selected == 2 else "", reference="1 selected"
    )
    benchmark(draw_with_weights)
