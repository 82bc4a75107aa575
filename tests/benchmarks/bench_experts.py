"""The expert layer, forward and backward in float32, beside the products alone and beside the usual other forms.

Everything that differs between sides is how the data meet the experts: all have ReLU and biases except the bare
products. The one-hot tensor of GShard (Lepikhin et al. 2021, https://arxiv.org/abs/2006.16668) has n·k·c entries,
1.1 GB at 16384×64, and its two einsums cost 2·n·k·c·d operations each way. A loop over experts does the same products
as the batch, so where these fill the machine it cannot be slower by much: what it adds is per expert.

Sides take turns, so that a change of the machine's pace meets all of them.
"""

import pytest
import torch

from prob_moe.experts import BatchedExperts, dispatch, dispatch_plan

# n, k, d, h at capacity factor 1.
CASES = [(4096, 16, 256, 1024), (4096, 64, 128, 512), (16384, 64, 128, 512)]


def _experts(layer):
    return layer.hidden.weight, layer.hidden.bias, layer.output.weight, layer.output.bias


def _ours(layer, x, assignment, capacity):
    return layer(x, assignment, capacity=capacity)


def _one_hot_einsum(layer, x, assignment, capacity):
    k = layer.num_experts
    expert = torch.nn.functional.one_hot(assignment, k)
    slot = (expert.cumsum(0) * expert).sum(-1) - 1
    # (n, k, c): datapoint i sits in slot c of expert k.
    place = (expert.to(x.dtype)).unsqueeze(-1) * torch.nn.functional.one_hot(slot, capacity).to(x.dtype).unsqueeze(-2)
    w, b, v, a = _experts(layer)
    hidden = torch.relu(torch.baddbmm(b.unsqueeze(-2), torch.einsum("nkc,nd->kcd", place, x), w))
    return torch.einsum("nkc,kcd->nd", place, torch.baddbmm(a.unsqueeze(-2), hidden, v))


def _loop_over_experts(layer, x, assignment, capacity):
    """As most published layers have it: find the expert's datapoints, apply it, add its rows to the output."""
    out = torch.zeros_like(x)
    for e, (w, b, v, a) in enumerate(zip(*_experts(layer))):
        (index,) = torch.where(assignment == e)
        out.index_add_(0, index, torch.relu(x[index] @ w + b) @ v + a)
    return out


def _loop_over_sorted_experts(layer, x, assignment, capacity):
    """The loop at its best: one sort, contiguous pieces, one gather back."""
    order = assignment.argsort()
    pieces = x.index_select(0, order).split(capacity)
    out = [torch.addmm(a, torch.relu(torch.addmm(b, rows, w)), v) for rows, w, b, v, a in zip(pieces, *_experts(layer))]
    return torch.cat(out).index_select(0, order.argsort())


SIDES = {
    "ours": (_ours, "at most 1.15 of the bare pair"),
    "bare bmm pair on dispatched data": (None, "at least 0.87"),
    "one-hot einsum dispatch (GShard)": (_one_hot_einsum, "at least 3"),
    "loop over experts": (_loop_over_experts, "at least 3"),
    "loop over sorted experts": (_loop_over_sorted_experts, ""),
}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("case", CASES, ids="{0[0]}x{0[1]}".format)
def test_forward_and_backward(benchmark, case, turn, side):
    n, k, d, h = case
    c = n // k
    torch.set_num_threads(2)
    layer = BatchedExperts(k, d, h, d)
    x = torch.randn(n, d, requires_grad=True)
    assignment = torch.randperm(n) % k
    run, bar = SIDES[side]
    benchmark.group = f"experts {n}×{k} ({d}→{h}→{d})"
    benchmark.extra_info.update(side=side, bar=bar)
    if run is None:
        w, v = layer.hidden.weight, layer.output.weight
        slots = dispatch(x.detach(), dispatch_plan(assignment, k, c)).requires_grad_()
        grad = torch.randn(k, c, d)

        def step():
            torch.autograd.grad(torch.bmm(torch.bmm(slots, w), v), [slots, w, v], grad)
    else:
        grad = torch.randn(n, d)
        expected = _ours(layer, x, assignment, c)
        torch.testing.assert_close(run(layer, x, assignment, c), expected, rtol=1e-3, atol=1e-4)

        def step():
            torch.autograd.grad(run(layer, x, assignment, c), [x, *layer.parameters()], grad)

    slow = run is _one_hot_einsum  # Warm from the comparison above.
    benchmark.pedantic(step, rounds=1 if slow else 5, warmup_rounds=0 if slow else 1)
