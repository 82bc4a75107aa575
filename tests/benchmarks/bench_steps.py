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
