"""Experts as functions of their stacked parameters: every expert, and every model of a stack, in one matrix product."""

from collections.abc import Callable

import torch
from torch import Tensor

from prob_moe.experts.affine import affine, affine_relu

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _for_every_expert(product: Product, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """
    Bring the operands of :func:`batched_linear` to three dimensions for ``product``, and its result back. All of it
    is views, unless dimensions broadcast against ``weight`` or the experts are not outermost in memory.
    """
    shared = inputs.shape[: max(inputs.dim() - weight.dim(), 0)]
    rows = inputs
    if shared:
        rows = rows.movedim(tuple(range(len(shared))), tuple(range(-2 - len(shared), -2)))
        rows = rows.flatten(-2 - len(shared), -2)
    lead = torch.broadcast_shapes(rows.shape[:-2], weight.shape[:-2])
    rows = rows.expand(*lead, *rows.shape[-2:])
    left = rows.flatten(0, -3)
    right = weight.expand(*lead, *weight.shape[-2:]).flatten(0, -3)
    if bias is not None:
        bias = bias.expand(*lead, bias.shape[-1]).flatten(0, -2)
    out = product(left, right, bias).unflatten(0, lead)
    if shared:
        out = out.unflatten(-2, (*shared, inputs.shape[-2]))
        out = out.movedim(tuple(range(-2 - len(shared), -2)), tuple(range(len(shared))))
    return out


def batched_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """
    y = x W_e + b_e for every expert e, as one batched matrix product.

    Leading dimensions broadcast as in :func:`torch.matmul`. Those of ``inputs`` that ``weight`` lacks share its
    parameters: they are folded into the rows of the product, so the parameters are never copied.

    :param inputs: (*batch, k, c, d).
    :param weight: (*models, k, d, h).
    :param bias: (*models, k, h).
    :returns: (*batch, k, c, h).
    """
    return _for_every_expert(affine, inputs, weight, bias)


def expert_forward(
    inputs: Tensor,
    weight_hidden: Tensor | None,
    bias_hidden: Tensor | None,
    weight_output: Tensor,
    bias_output: Tensor | None,
    activation: Callable[[Tensor], Tensor] = torch.relu,
) -> Tensor:
    """
    Linear experts, or experts with one hidden layer, on data that is already dispatched.

    :param inputs: (*batch, k, c, d).
    :param weight_hidden: (*models, k, d, h), or None for linear experts.
    :param bias_hidden: (*models, k, h) or None.
    :param weight_output: (*models, k, h, out), for linear experts (*models, k, d, out).
    :param bias_output: (*models, k, out) or None.
    :param activation: elementwise callable between the two layers.
    :returns: (*batch, k, c, out).
    """
    if weight_hidden is not None:
        if activation is torch.relu:
            inputs = _for_every_expert(affine_relu, inputs, weight_hidden, bias_hidden)
        else:
            inputs = activation(batched_linear(inputs, weight_hidden, bias_hidden))
    return batched_linear(inputs, weight_output, bias_output)
