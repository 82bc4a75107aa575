"""Moving datapoints into the experts' slots and back. Both ways, and both gradients, are one gather of rows."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from prob_moe._transforms import nested_forward_mode
from prob_moe.experts.plan import DispatchPlan
from prob_moe.experts.validation import check_features


class _GatherRows(torch.autograd.Function):
    # Who sits where is known in both directions, so the adjoint only swaps them: the gradient is gathers and sums too,
    # where autograd's own scatter-add would be slower, and on CUDA not deterministic.
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        # An appended row of zeros costs less than writing zeros into the result row by row.
        padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
        first, *others = torch.where(index < 0, rows.shape[0], index).unbind()
        gathered = padded.index_select(0, first)
        for other in others:
            gathered = gathered + padded.index_select(0, other)
        return gathered

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1], inputs[2])
        ctx.save_for_forward(inputs[1], inputs[2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        index, inverse = ctx.saved_tensors
        return gather_rows(grad, inverse, index), None, None


class _GatherRowsAndTangents(_GatherRows):
    # A class of its own, because the compiler refuses a function that has a forward mode.
    @staticmethod
    def jvp(ctx: Any, rows: Tensor, *rest: None) -> Tensor:
        return gather_rows(rows, *ctx.saved_tensors)


def gather_rows(rows: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """
    The sum of ``rows[index[a]]`` over a, with a zero row where the index is -1; linear, and differentiable any number
    of times.

    :param rows: (r, d).
    :param index: long (a, l), entries in {-1..r-1}.
    :param inverse: the same pairs from the other side: long (b, r), entries in {-1..l-1}, whose column i holds every j
        with i in column j of the index.
    :returns: (l, d).
    """
    args = (rows, index, inverse)
    if torch.compiler.is_compiling():
        return _GatherRows.apply(*args)  # type: ignore[no-untyped-call]
    # Tensor subclasses, such as those that carry Pyro's provenance, are invisible to an autograd.Function.
    if has_torch_function(args):
        return handle_torch_function(gather_rows, args, *args)
    if nested_forward_mode():
        return _GatherRows.forward(*args)
    return _GatherRowsAndTangents.apply(*args)  # type: ignore[no-untyped-call]


def _flat_indices(plan: DispatchPlan, expert_major: bool) -> tuple[Tensor, Tensor]:
    """
    The plan over the rows of all batch elements at once.

    :param expert_major: whether the rows of slots are ordered (k, *batch, c) rather than (*batch, k, c).
    :returns: the slot's row of every datapoint (batch·n,), and the datapoint's row of every slot (batch·k·c,).
    """
    *batch, n = plan.slots.shape
    k, c = plan.sources.shape[-2:]
    if not batch:
        return plan.slots, plan.sources.flatten()
    count = math.prod(batch)
    element = torch.arange(count, device=plan.slots.device).reshape(*batch, 1)
    sources = plan.sources + (element * n).unsqueeze(-1)
    sources = torch.where(plan.sources < 0, -1, sources)
    slots = plan.slots + element * (k * c)
    if expert_major:
        sources = sources.movedim(-2, 0)
        slots = (plan.slots // c * count + element) * c + plan.slots % c
    slots = torch.where(plan.slots < 0, -1, slots)
    return slots.flatten(), sources.flatten()


def dispatch(x: Tensor, plan: DispatchPlan, *, num_selected: int = 1) -> Tensor:
    """
    Gather the datapoints by expert.

    The memory of the result is expert-major, (k, *batch, c, d), so that experts shared by the whole batch see it as one
    (k, batch·c, d) without a copy.

    :param x: (*batch, n, d); leading dimensions broadcast to those of the plan.
    :param plan: from :func:`dispatch_plan`, for an assignment (*batch, m·n) whose entry i belongs to datapoint i % n.
    :param num_selected: m, entries of every datapoint. The datapoints are gathered where they lie, not copied m times.
    :returns: (*batch, k, c, d); zeros in empty slots.
    :raises ValueError: ``x`` does not fit the plan.
    """
    *batch, entries = plan.slots.shape
    k, c = plan.sources.shape[-2:]
    d = x.shape[-1] if x.dim() else 0
    n = entries // num_selected
    check_features("x", x, (n, d), plan.slots.shape[:-1])
    slots, sources = _flat_indices(plan, expert_major=True)
    if num_selected > 1:
        element = sources // max(1, entries)
        sources = torch.where(sources < 0, -1, element * n + sources % max(1, n))
        slots = slots.view(math.prod(batch), num_selected, n).movedim(1, 0)
    rows = x.expand(*batch, n, d).reshape(-1, d) if batch else x
    gathered = gather_rows(rows, sources.unsqueeze(0), slots.reshape(num_selected, math.prod(batch) * n))
    return gathered.reshape(k, *batch, c, d).movedim(0, -3)


def combine(expert_out: Tensor, plan: DispatchPlan) -> Tensor:
    """
    Gather the experts' results back to their datapoints; the inverse of :func:`dispatch`.

    :param expert_out: (*batch, k, c, d).
    :param plan: from :func:`dispatch_plan`.
    :returns: (*batch, n, d); zero rows, without gradient, where a datapoint was dropped or masked.
    :raises ValueError: ``expert_out`` does not fit the plan.
    """
    *batch, n = plan.slots.shape
    k, c = plan.sources.shape[-2:]
    d = expert_out.shape[-1] if expert_out.dim() else 0
    check_features("expert_out", expert_out, (k, c, d), plan.slots.shape[:-1])
    expert_out = expert_out.expand(*batch, k, c, d)
    # Read the slots in the order in which they lie in memory: neither layout needs a copy.
    expert_major = not expert_out.is_contiguous()
    slots, sources = _flat_indices(plan, expert_major)
    if expert_major:
        expert_out = expert_out.movedim(-3, 0)
    gathered = gather_rows(expert_out.reshape(-1, d), slots.unsqueeze(0), sources.unsqueeze(0))
    return gathered.reshape(*batch, n, d)
