"""Auxiliary losses of routers."""

import math

import torch
from torch import Tensor

from prob_moe.distributions.support import expert_counts


def load_balancing_loss(logits: Tensor, choices: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""
    Load-balancing loss :math:`k\sum_j F_j P_j`, with F the shares of the choices and P the mean probabilities: 1 at
    balance. The gradient flows through P only. Fedus et al. (2021), "Switch Transformers", eq. 4.

    :param logits: router logits, (*batch, n, k).
    :param choices: the expert chosen for every datapoint, whether or not it drops it, long (*sample, *batch, n).
    :param mask: bool, broadcastable to the choices, False for padding.
    :returns: (*sample, *batch).

    >>> load_balancing_loss(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
    tensor(1.)
    """
    present = torch.ones_like(choices, dtype=torch.bool) if mask is None else mask.expand(choices.shape)
    counts = expert_counts(choices, present, logits.shape[-1])
    # Counts above 256 are no bfloat16 numbers.
    counts = counts.to(torch.promote_types(logits.dtype, torch.float32))
    total = counts.sum(-1, keepdim=True).clamp(min=1)
    probabilities = (logits.softmax(-1) * present.unsqueeze(-1)).sum(-2)
    return logits.shape[-1] * (counts / total * (probabilities / total)).sum(-1).to(logits.dtype)


def z_loss(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""
    Router z-loss :math:`\frac1n\sum_i (\log\sum_j e^{\phi_{ij}})^2`, which keeps logits small. Zoph et al. (2022),
    "ST-MoE", eq. 5.

    :param logits: router logits, (*batch, n, k).
    :param mask: bool, broadcastable to (*batch, n), False for padding.
    :returns: (*batch).
    """
    squares = logits.logsumexp(-1).square()
    present = torch.ones_like(squares, dtype=torch.bool) if mask is None else mask.expand(squares.shape)
    return squares.masked_fill(~present, 0.0).sum(-1) / present.sum(-1).clamp(min=1)


def check_weight(name: str, weight: float) -> None:
    """
    :raises ValueError: if the weight of a loss is negative or not finite.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name} must be a weight >= 0, got {weight!r}")
