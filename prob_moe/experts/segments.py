"""Products of sorted rows: each expert's rows are one contiguous piece, which meets the weights of that expert."""

from typing import Any

import torch
from torch import Tensor

from prob_moe._transforms import transforming


class _SegmentAffine(torch.autograd.Function):
    # Every product writes its piece of one tensor. Autograd would put the pieces of the results, of their gradients
    # and of the weights' gradients together by copies.
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, loads: list[int], relu: bool) -> Tensor:
        out = rows.new_empty(rows.shape[0], weight.shape[-1])
        for expert, (piece, into) in enumerate(zip(rows.split(loads), out.split(loads))):
            if bias is None:
                torch.mm(piece, weight[expert], out=into)
            else:
                torch.addmm(bias[expert], piece, weight[expert], out=into)
            if relu:
                into.relu_()
        ctx.save_for_backward(rows, weight, out if relu else None)
        ctx.loads = loads
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        rows, weight, out = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or transforming():
            grad = grad if out is None else torch.ops.aten.threshold_backward(grad, out, 0)
            return (*_gradients(grad, rows, weight, ctx.loads, needed), None, None)
        if out is not None:  # Nobody else holds this gradient, see `segment_affine_relu`.
            grad = torch.ops.aten.threshold_backward.grad_input(grad, out, 0, grad_input=grad)
        for_rows = torch.empty_like(rows) if needed[0] else None
        for_weight = torch.empty_like(weight) if needed[1] else None
        for_bias = weight.new_empty(weight.shape[0], weight.shape[-1]) if needed[2] else None
        first = 0
        for expert, load in enumerate(ctx.loads):
            piece, first = slice(first, first + load), first + load
            if for_rows is not None:
                torch.mm(grad[piece], weight[expert].mT, out=for_rows[piece])
            if for_weight is not None:
                torch.mm(rows[piece].mT, grad[piece], out=for_weight[expert])
            if for_bias is not None:
                torch.sum(grad[piece], 0, out=for_bias[expert])
        return for_rows, for_weight, for_bias, None, None


def _gradients(
    grad: Tensor, rows: Tensor, weight: Tensor, loads: list[int], needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same by operations that torch can differentiate again, and map."""
    pieces = grad.split(loads)
    return (
        torch.cat([piece @ matrix.mT for piece, matrix in zip(pieces, weight)]) if needed[0] else None,
        torch.stack([own.mT @ piece for own, piece in zip(rows.split(loads), pieces)]) if needed[1] else None,
        torch.stack([piece.sum(0) for piece in pieces]) if needed[2] else None,
    )


def segment_affine(rows: Tensor, weight: Tensor, bias: Tensor | None, loads: list[int]) -> Tensor:
    """
    y = x W_e + b_e for the rows x of every expert e. Not for :mod:`torch.func` and forward mode.

    :param rows: (r, d), those of expert 0 first.
    :param weight: (k, d, h).
    :param bias: (k, h) or None.
    :param loads: k numbers of rows with sum r.
    :returns: (r, h).
    """
    out: Tensor = _SegmentAffine.apply(rows, weight, bias, loads, False)  # type: ignore[no-untyped-call]
    return out


def segment_affine_relu(rows: Tensor, weight: Tensor, bias: Tensor | None, loads: list[int]) -> Tensor:
    """
    ReLU of :func:`segment_affine`. The gradient that comes back is overwritten: for use between two products only,
    where nobody else holds it.
    """
    out: Tensor = _SegmentAffine.apply(rows, weight, bias, loads, True)  # type: ignore[no-untyped-call]
    return out
