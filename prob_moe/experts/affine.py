"""The matrix products of the layer, on operands of three dimensions: with a bias, and with a bias and ReLU."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from prob_moe._transforms import nested_forward_mode


def affine(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """
    :param rows: (k, c, d).
    :param weight: (k, d, h).
    :param bias: (k, h) or None.
    :returns: (k, c, h).
    """
    if bias is None:
        return torch.bmm(rows, weight)
    return torch.baddbmm(bias.unsqueeze(-2), rows, weight)


class _AffineReLU(torch.autograd.Function):
    # The hidden layer is the largest tensor of the step. Autograd would hold up to four at once: before and after the
    # ReLU, and both gradients. Here the ReLU overwrites its argument, and its gradient overwrites the gradient.
    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return affine(rows, weight, bias).relu_()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[1], output)
        ctx.save_for_forward(inputs[0], inputs[1], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        rows, weight, output = ctx.saved_tensors
        relu_backward = torch.ops.aten.threshold_backward
        if torch.is_grad_enabled():  # A gradient that may be differentiated again is not ours to overwrite.
            grad = relu_backward(grad, output, 0)
        else:
            grad = relu_backward.grad_input(grad, output, 0, grad_input=grad)
        for_rows, for_weight, for_bias = ctx.needs_input_grad
        return (
            torch.bmm(grad, weight.mT) if for_rows else None,
            torch.bmm(rows.mT, grad) if for_weight else None,
            grad.sum(-2) if for_bias else None,
        )

    @staticmethod
    def jvp(ctx: Any, rows_tangent: Tensor, weight_tangent: Tensor, bias_tangent: Tensor | None) -> Tensor:
        rows, weight, output = ctx.saved_tensors
        tangent = affine(rows_tangent, weight, bias_tangent) + torch.bmm(rows, weight_tangent)
        return torch.where(output > 0, tangent, 0.0)


def affine_relu(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """
    ReLU of :func:`affine`, with half the memory. The gradient that comes back is overwritten: for use between two
    products only, where nobody else holds it. Batched gradients (``is_grads_batched=True``) need :mod:`torch.func`.
    """
    args = (rows, weight, bias)
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(rows.device.type):
        # The compiler fuses by itself; autocast chooses the dtype of every product.
        return affine(*args).relu_()
    if nested_forward_mode():
        return affine(*args).relu()
    # Tensor subclasses, such as those that carry Pyro's provenance, are invisible to an autograd.Function.
    if has_torch_function(args):
        return handle_torch_function(affine_relu, args, *args)
    return _AffineReLU.apply(*args)  # type: ignore[no-untyped-call]
