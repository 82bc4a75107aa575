"""The expert layer, forward and backward in float32, beside the products alone and beside the usual other forms.

Everything that differs between sides is how the data meet the experts: all have ReLU and biases except the bare
products. The one-hot tensor of GShard (Lepikhin et al. 2021, https://arxiv.org/abs/2006.16668) has n·k·c entries, and
its two einsums cost 2·n·k·c·d operations each way. A loop over experts does the same products as the batch, so where
these fill the machine it cannot be slower by much: what it adds is per expert.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prob_moe.experts import BatchedExperts, dispatch, dispatch_plan
from tests.benchmarks.case import A_PART, Case, Side

Layer = Callable[[BatchedExperts, Tensor, Tensor, int], Tensor]


def _experts(layer: BatchedExperts) -> Any:
    return layer.hidden.weight, layer.hidden.bias, layer.output.weight, layer.output.bias


def _ours(layer: BatchedExperts, x: Tensor, assignment: Tensor, capacity: int) -> Tensor:
    return layer(x, assignment, capacity=capacity)


def _one_hot_einsum(layer: BatchedExperts, x: Tensor, assignment: Tensor, capacity: int) -> Tensor:
    expert = torch.nn.functional.one_hot(assignment, layer.num_experts)
    slot = (expert.cumsum(0) * expert).sum(-1) - 1
    # (n, k, c): datapoint i sits in slot c of expert k.
    place = expert.to(x.dtype).unsqueeze(-1) * torch.nn.functional.one_hot(slot, capacity).to(x.dtype).unsqueeze(-2)
    w, b, v, a = _experts(layer)
    hidden = torch.relu(torch.baddbmm(b.unsqueeze(-2), torch.einsum("nkc,nd->kcd", place, x), w))
    return torch.einsum("nkc,kcd->nd", place, torch.baddbmm(a.unsqueeze(-2), hidden, v))


def _loop_over_experts(layer: BatchedExperts, x: Tensor, assignment: Tensor, capacity: int) -> Tensor:
    """As most published layers have it: find the expert's datapoints, apply it, add its rows to the output."""
    out = torch.zeros_like(x)
    for e, (w, b, v, a) in enumerate(zip(*_experts(layer))):
        (index,) = torch.where(assignment == e)
        out.index_add_(0, index, torch.relu(x[index] @ w + b) @ v + a)
    return out


def _loop_over_sorted_experts(layer: BatchedExperts, x: Tensor, assignment: Tensor, capacity: int) -> Tensor:
    """The loop at its best: one sort, contiguous pieces, one gather back."""
    order = assignment.argsort()
    pieces = x.index_select(0, order).split(capacity)
    out = [torch.addmm(a, torch.relu(torch.addmm(b, rows, w)), v) for rows, w, b, v, a in zip(pieces, *_experts(layer))]
    return torch.cat(out).index_select(0, order.argsort())


LAYERS: dict[str, tuple[Layer, str]] = {
    "one-hot einsum (GShard)": (_one_hot_einsum, ">= 3"),
    "loop over experts": (_loop_over_experts, ""),
    "loop over sorted experts": (_loop_over_sorted_experts, ""),
}
BARE = "bare bmm pair"


def _problem(n: int, k: int, d: int, h: int) -> tuple[BatchedExperts, Tensor, Tensor]:
    return BatchedExperts(k, d, h, d), torch.randn(n, d, requires_grad=True), torch.randperm(n) % k


def layers(n: int, k: int, d: int, h: int) -> dict[str, Side]:
    layer, x, assignment = _problem(n, k, d, h)
    grad = torch.randn(n, d)

    def step(run: Layer) -> Tensor:
        out = run(layer, x, assignment, n // k)
        torch.autograd.grad(out, [x, *layer.parameters()], grad)
        return out.detach()

    return {"ours": partial(step, _ours), **{name: partial(step, run) for name, (run, _) in LAYERS.items()}}


def bare(n: int, k: int, d: int, h: int, autocast: bool = False) -> dict[str, Side]:
    layer, x, assignment = _problem(n, k, d, h)
    grad = torch.randn(n, d)
    w, v = layer.hidden.weight, layer.output.weight
    slots = dispatch(x.detach(), dispatch_plan(assignment, k, n // k)).requires_grad_()
    slot_grad = torch.randn(k, n // k, d)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = _ours(layer, x, assignment, n // k)
        torch.autograd.grad(out, [x, *layer.parameters()], grad.to(out.dtype))

    def products() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = torch.bmm(torch.bmm(slots, w), v)
        torch.autograd.grad(out, [slots, w, v], slot_grad.to(out.dtype))

    return {"ours": step, BARE: products}


def off(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).abs().max() / theirs.abs().max())


SHAPES = [(4096, 16, 256, 1024), (4096, 64, 128, 512)]
CASES = [
    *(
        Case(
            f"experts {n}×{k} ({d}→{h}→{d})",
            partial(layers, n, k, d, h),
            {name: goal for name, (_, goal) in LAYERS.items()},
            deviation=off,
            tolerance=1e-4,
            threads=2,
        )
        for n, k, d, h in SHAPES
    ),
    *(
        Case(
            f"experts {n}×{k} ({d}→{h}→{d}){', bfloat16' if autocast else ''}, products alone",
            partial(bare, n, k, d, h, autocast),
            {BARE: "" if autocast else "<= 1.15"},
            A_PART,
            threads=2,
        )
        for n, k, d, h in SHAPES
        for autocast in (False, True)
    ),
]
