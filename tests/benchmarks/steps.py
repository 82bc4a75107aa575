"""A training step of a layer of experts beside one of a dense feed-forward layer on the same datapoints.

Forward and backward, through ``TraceRouting_ELBO`` for distributions, with the rule's own loss for Switch; 4096
datapoints, 16 experts, capacity factor 1.25. The dense layer has the size of one expert, so its products are those of
all processed datapoints, and what a ratio has above 1 is router, draw, weights, moving rows, and smaller products.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

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
from tests.benchmarks.case import SAME_WORK, Case, Side

N, K, D, H = 4096, 16, 128, 512
SHAPE = f"{N} datapoints, {D}→{H}→{D}, {4 * N * D * H / 1e9:.1f} GFLOP forward"
LIMITED = {"capacity_factor": 1.25}
DENSE = "dense layer of the size of one expert"

#: by name: assignment, its options, the share of datapoints at one expert (None for what a new router does), the goal
SIDES: dict[str, tuple[Any, dict[str, Any], float | None, str]] = {
    "independent": (IndependentRouting, {}, None, "<= 2.0"),
    "independent, 40 % at one expert": (IndependentRouting, {}, 0.4, "<= 2.0"),
    "Switch": (Switch, LIMITED, None, "<= 1.8"),
    "skip": (CapacitySkip, LIMITED, None, "<= 2.1"),
    "Gumbel-Matching": (GumbelMatching, LIMITED, None, "<= 2.2"),
    "dependent rounding": (DependentRounding, LIMITED, None, "<= 2.8"),
}


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(N, D, requires_grad=True), torch.randn(N, D)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D))


def gradients(parameters: list[Tensor], loss: Callable[[], Tensor]) -> Side:
    return lambda: torch.autograd.grad(loss(), parameters, allow_unused=True)


def squared(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (layer(x) - y).square().sum() / 2


def expert_loss(x: Tensor, y: Tensor, assignment: Any, options: dict[str, Any], share: float | None) -> Side:
    router = nn.Linear(D, K)
    if share is not None:
        nn.init.zeros_(router.weight)
        nn.init.zeros_(router.bias)
        router.bias.data[0] = math.log(share / (1 - share) * (K - 1))
    layer = ExpertLayer(router, BatchedExperts(K, D, H, D), assignment, **options)
    elbo = TraceRouting_ELBO()

    def model() -> None:
        out = layer(x)
        with pyro.plate("data", N):
            pyro.sample("y", dist.Normal(out, 1.0).to_event(1), obs=y)

    def rule_loss() -> Tensor:
        with record_routing() as routed:
            out = layer(x)
        return (out - y).square().sum() / 2 + N * sum(visit.loss for visit in routed.visits)

    loss = rule_loss if layer.rule is not None else partial(elbo.differentiable_loss, model, None)
    return gradients([x, *layer.parameters()], loss)


def step(name: str, autocast: bool = False) -> dict[str, Side]:
    assignment, options, share, _ = SIDES[name]
    x, y = data()
    plain = dense()

    def within(run: Side) -> Side:
        def cast() -> Any:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                return run()

        return cast

    return {
        "ours": within(expert_loss(x, y, assignment, options, share)),
        DENSE: within(gradients([x, *plain.parameters()], partial(squared, plain, x, y))),
    }


PROCEDURES = {"independent": IndependentRouting, "skip": CapacitySkip, "dependent rounding": DependentRounding}
ONE = "router objective, one expert"


def bound(name: str) -> dict[str, Side]:
    """The mixture bound from two experts per datapoint, beside the router objective from one; the same experts."""
    x, y = data()

    def side(num_selected: int | None) -> Side:
        mixture = MixtureOfExperts(
            nn.Linear(D, K),
            BatchedExperts(K, D, H, D),
            lambda out: dist.Normal(out, 1.0).to_event(1),
            assignment=PROCEDURES[name],
            num_selected=num_selected,
            **LIMITED,
        )
        elbo = TraceRouting_ELBO() if num_selected is None else TraceMixture_ELBO()
        loss = partial(elbo.differentiable_loss, mixture, None, x, y)
        return gradients([x, *mixture.parameters()], loss)

    return {"ours": side(2), ONE: side(None)}


CASES = [
    *(
        Case(f"step, {name}", partial(step, name), {DENSE: goal}, SAME_WORK, work=SHAPE, threads=2, seconds=1.0)
        for name, (_, _, _, goal) in SIDES.items()
    ),
    Case(
        "step, dependent rounding, bfloat16 autocast",
        partial(step, "dependent rounding", True),
        {DENSE: ""},
        SAME_WORK,
        work=SHAPE,
        threads=2,
        seconds=1.0,
    ),
    *(
        Case(
            f"step of the bound, {name}",
            partial(bound, name),
            {ONE: "<= 2.2"},
            SAME_WORK,
            work="",
            threads=2,
            seconds=1.0,
        )
        for name in PROCEDURES
    ),
]
