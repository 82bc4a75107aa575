"""A training step of a layer of experts on a mesh of one process beside the plain layer: what the parallel layer costs
where it is not needed.

Four groups of 1024 datapoints, 16 experts, capacity factor 1.25; forward, surrogate of the router objective, backward,
and on the mesh the sum of gradients. What keyed draws cost, which the mesh needs, is a side of its own. On several
processes ``torchrun --nproc-per-node 2 -m inference scale`` prints the share of the exchange.

Sides take turns, so that a change of the machine's pace meets all of them, and processor time of the one thread is what
counts, so that other programs do not.
"""

import time
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn

from prob_moe import CapacitySkip, DependentRounding, ExpertLayer, record_routing
from prob_moe.distributions import KeyedDraws
from prob_moe.experts import BatchedExperts
from prob_moe.parallel import expert_mesh, sum_gradients

pytestmark = pytest.mark.benchmark(timer=time.thread_time)
G, N, K, D, H = 4, 1024, 16, 128, 512
PROCEDURES = {"skip": CapacitySkip, "dependent rounding": DependentRounding}
PLAIN, KEYED, MESH = "plain layer", "plain layer, keyed draws", "on a mesh of one process"


@pytest.fixture(scope="module")
def world():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("side", [PLAIN, KEYED, MESH])
@pytest.mark.parametrize("name", PROCEDURES)
@pytest.mark.parametrize("turn", range(5))
def test_step_on_a_mesh_of_one(benchmark, world, turn, name, side):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(G, N, D, requires_grad=True), torch.randn(G, N, D)
    mesh = expert_mesh(K) if side == MESH else None
    experts = BatchedExperts(K, D, H, D)
    layer = ExpertLayer(nn.Linear(D, K), experts, PROCEDURES[name], capacity_factor=1.25, mesh=mesh)
    draws = KeyedDraws(0)

    def step():
        layer.zero_grad()
        with nullcontext() if side == PLAIN else draws.step(0), record_routing() as routed:
            losses = (layer(x) - y).square().sum(-1)
            (routed.surrogate(losses).sum() / (G * N)).backward()
        if mesh is not None:
            sum_gradients(layer)

    benchmark.group = f"step {G}×{N}×{K} ({D}→{H}→{D}), {name}"
    benchmark.extra_info.update(side=side, bar="at most 1.05" if side == MESH else "", reference=PLAIN)
    benchmark.pedantic(step, rounds=6, warmup_rounds=1)
