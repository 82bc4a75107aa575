"""A training step beside those of published layers of experts, which route in other ways: the same work, other models.

Two experts per datapoint of 16, the capacity that holds 1.25 times the even load; a side is left out where its package
is not installed (``make bench`` installs them).
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from prob_moe import ExpertLayer, record_routing
from prob_moe.experts import BatchedExperts
from prob_moe.rules import TopGates
from tests.benchmarks.case import SAME_WORK, Case, Side
from tests.benchmarks.steps import DENSE, D, H, K, dense, gradients, squared

N = 1024
ST_MOE, GSHARD = "st-moe-pytorch, top-2", "mixture-of-experts, top-2"
WORK = f"{N} datapoints, two of {K} experts {D}→{H}→{D}, {8 * N * D * H / 1e9:.2f} GFLOP forward"


def of_st_moe() -> nn.Module:
    from st_moe_pytorch import MoE

    return MoE(dim=D, num_experts=K, gating_top_n=2, capacity_factor_train=1.25, expert_hidden_mult=H // D)


def of_mixture_of_experts() -> nn.Module:
    from mixture_of_experts import MoE

    return MoE(dim=D, num_experts=K, hidden_dim=H, capacity_factor_train=1.25)


PEERS: dict[str, Callable[[], nn.Module]] = {ST_MOE: of_st_moe, GSHARD: of_mixture_of_experts}


def published(layer: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Both work on batches, and put out their balancing losses beside the output."""
    out, loss = layer(x.unsqueeze(0))[:2]
    return (out.squeeze(0) - y).square().sum() / 2 + N * loss


def sides() -> dict[str, Side]:
    x, y = torch.randn(N, D, requires_grad=True), torch.randn(N, D)
    # Room for 1.25 times the even load of both choices.
    layer = ExpertLayer(nn.Linear(D, K), BatchedExperts(K, D, H, D), TopGates(num_selected=2, capacity_factor=2.5))

    def ours() -> Tensor:
        with record_routing() as routed:
            out = layer(x)
        return (out - y).square().sum() / 2 + N * sum(visit.loss for visit in routed.visits)

    plain = dense()
    found = {
        "ours": gradients([x, *layer.parameters()], ours),
        DENSE: gradients([x, *plain.parameters()], partial(squared, plain, x, y)),
    }
    for name, make in PEERS.items():
        try:
            with warnings.catch_warnings(action="ignore"):  # their own affairs
                peer = make()
        except ModuleNotFoundError:
            continue
        found[name] = gradients([x, *peer.parameters()], partial(published, peer, x, y))
    return found


CASES = [
    Case(
        "step, top-2 gates",
        sides,
        {DENSE: "", ST_MOE: "", GSHARD: ""},
        SAME_WORK,
        work=WORK,
        threads=2,
        seconds=1.0,
    )
]
