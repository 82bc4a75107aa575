"""What needs a CUDA device: ``make test-gpu``. Elsewhere all of this is skipped, and so not tested."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from prob_moe import ExpertLayer, record_routing, replay_routing
from prob_moe.distributions import (
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
    KeyedDraws,
    draws_at,
)
from prob_moe.experts import BatchedExperts
from prob_moe.experts.segments import segment_affine
from prob_moe.numerics import solve_assignment
from prob_moe.parallel import clip_grad_norm_, expert_mesh, sum_gradients
from prob_moe.rules import Switch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
N, K, D = 64, 4, 8
LAWS = {
    "rounding": (DependentRounding, {"capacity_factor": 1.0}),
    "matching": (GumbelMatching, {"capacity_factor": 1.0}),
    "skip": (CapacitySkip, {"capacity_factor": 1.0}),
    "independent": (IndependentRouting, {}),
}


def test_an_assignment_is_the_same_on_the_same_device():
    scores = torch.randn(2, 64, 8)
    for ours, other in zip(solve_assignment(scores.cuda(), 8), solve_assignment(scores, 8)):
        assert ours.is_cuda
        assert torch.equal(ours.cpu(), other)


@pytest.mark.parametrize("name", LAWS)
def test_a_draw_stays_on_its_device_and_within_capacity(name):
    make, options = LAWS[name]
    law = make(torch.randn(2, N, K).cuda(), **options)
    with KeyedDraws(0).step(0), draws_at("layer", 2):
        value = law.sample()
    weights = law.importance_weights(value)
    assert value.is_cuda
    assert weights.is_cuda
    assert options == {} or int(law.loads(value).max()) <= N // K
    assert bool(weights.isfinite().all())


@pytest.mark.parametrize("capacity", [None, N])
def test_experts_are_those_of_the_processor(capacity):
    """In slots, and with room for the largest load."""
    experts = BatchedExperts(K, D, 16, D, dtype=torch.float64)
    x, assignment = torch.randn(2, N, D, dtype=torch.float64), torch.randint(K, (2, N))
    wanted = experts(x, assignment, capacity=capacity)
    wanted.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in experts.parameters()]
    experts = experts.cuda()
    experts.zero_grad()
    out = experts(x.cuda(), assignment.cuda(), capacity=capacity)
    out.square().sum().backward()
    torch.testing.assert_close(out.cpu(), wanted)
    torch.testing.assert_close([parameter.grad.cpu() for parameter in experts.parameters()], gradients)


def test_products_of_rows_sorted_by_expert_are_those_of_the_processor():
    rows, weight, bias = torch.randn(10, D), torch.randn(3, D, 5), torch.randn(3, 5)
    found = []
    for device in ("cpu", "cuda"):
        inputs = [part.double().to(device).requires_grad_() for part in (rows, weight, bias)]
        out = segment_affine(*inputs, [4, 0, 6])
        out.square().sum().backward()
        found.append([out.detach().cpu(), *(part.grad.cpu() for part in inputs)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("assignment", [CapacitySkip, Switch])
def test_a_step_of_a_layer_is_that_of_the_processor(assignment):
    """Under the same routing: the devices draw other numbers."""
    layer = ExpertLayer(
        nn.Linear(D, K).double(), BatchedExperts(K, D, 16, D, dtype=torch.float64), assignment, capacity_factor=1.5
    )
    x = torch.randn(2, N, D, dtype=torch.float64)
    with record_routing() as routed:
        wanted = layer(x)
    record = routed.record()
    found = []
    for device in ("cpu", "cuda"):
        layer = layer.to(device)
        layer.zero_grad()
        with replay_routing(record), record_routing():
            out = layer(x.to(device))
        out.square().sum().backward()
        gradients = [parameter.grad for parameter in layer.parameters()]
        found.append([out.detach().cpu(), *(gradient.cpu() for gradient in gradients if gradient is not None)])
    torch.testing.assert_close(*found)
    torch.testing.assert_close(found[0][0], wanted)


def test_a_layer_on_a_mesh_of_one_process_over_nccl_is_the_plain_layer():
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = []
        for mesh in (None, expert_mesh(K, "cuda")):
            torch.manual_seed(0)
            with torch.device("cuda"):
                layer = ExpertLayer(
                    nn.Linear(D, K), BatchedExperts(K, D, 16, D), CapacitySkip, capacity_factor=1.5, mesh=mesh
                )
                x = torch.randn(2, N, D)
            with KeyedDraws(0).step(0), record_routing() as routed:
                routed.surrogate(layer(x).square().sum(-1)).sum().backward()
            sum_gradients(layer)
            found.append([clip_grad_norm_(layer, 1.0), *(parameter.grad for parameter in layer.parameters())])
        torch.testing.assert_close(*found)
    finally:
        dist.destroy_process_group()
