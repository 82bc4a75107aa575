"""A training step of a layer of experts on a mesh of one process beside the plain layer: what the parallel layer costs
where it is not needed.

Four groups of 1024 datapoints, 16 experts, capacity factor 1.25; forward, surrogate of the router objective, backward,
and on the mesh the sum of gradients. On several processes ``torchrun --nproc-per-node 2 -m inference scale`` prints the
share of the exchange.
"""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from prob_moe import CapacitySkip, DependentRounding, ExpertLayer, record_routing
from prob_moe.distributions import KeyedDraws
from prob_moe.experts import BatchedExperts
from prob_moe.parallel import expert_mesh, sum_gradients
from tests.benchmarks.case import SAME_WORK, Case, Side

G, N, K, D, H = 4, 1024, 16, 128, 512
PROCEDURES: dict[str, Any] = {"skip": CapacitySkip, "dependent rounding": DependentRounding}
PLAIN, KEYED = "plain layer", "plain layer, keyed draws"


def side(name: str, on_mesh: bool, keyed: bool) -> Side:
    torch.manual_seed(0)
    x, y = torch.randn(G, N, D, requires_grad=True), torch.randn(G, N, D)
    mesh = expert_mesh(K) if on_mesh else None
    layer = ExpertLayer(nn.Linear(D, K), BatchedExperts(K, D, H, D), PROCEDURES[name], capacity_factor=1.25, mesh=mesh)
    draws = KeyedDraws(0)

    def step() -> None:
        layer.zero_grad()
        with draws.step(0) if keyed else nullcontext(), record_routing() as routed:
            losses = (layer(x) - y).square().sum(-1)
            (routed.surrogate(losses).sum() / (G * N)).backward()
        if mesh is not None:
            sum_gradients(layer)

    return step


def sides(name: str) -> dict[str, Side]:
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return {"ours": side(name, True, True), PLAIN: side(name, False, False), KEYED: side(name, False, True)}


CASES = [
    Case(
        f"step on a mesh of one process, {name}",
        partial(sides, name),
        {PLAIN: "<= 1.05", KEYED: ""},
        SAME_WORK,
        work=f"{G} groups of {N} datapoints, {K} experts {D}→{H}→{D}",
        seconds=1.0,
    )
    for name in PROCEDURES
]
