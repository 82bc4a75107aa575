"""Auxiliary losses of routers."""

import math

import torch
from torch import Tensor

from prob_moe.distributions.checks import check_mask
from prob_moe.distributions.support import expert_counts
from prob_moe.padding import blank


def load_balancing_loss(
    logits: Tensor, choices: Tensor | None = None, mask: Tensor | None = None, *, counted: Tensor | None = None
) -> Tensor:
    r"""
    Load-balancing loss :math:`k\sum_j F_j P_j`, with F the shares of the choices and P the mean probabilities: 1 at
    balance. The gradient flows through P only. Fedus et al. (2021), "Switch Transformers", eq. 4.

    Without choices F is its own expectation where datapoints choose independently, P held fixed. That is the version
    to use with a procedure that balances by itself: the shares of its choices hardly vary, whatever the router says,
    and a loss that counts them would be constant, with gradient 0.

    :param logits: router logits, (*batch, n, k).
    :param choices: the expert chosen for every datapoint, whether or not it drops it, long (*sample, *batch, n); or
        None for expected shares.
    :param mask: bool, broadcastable to (*batch, n), False for padding, which is not counted.
    :param counted: which choices are meant, bool as the choices; the others are no load. None for all.
    :returns: (*sample, *batch).

    >>> load_balancing_loss(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))
    tensor(1.)
    >>> load_balancing_loss(torch.zeros(4, 2))
    tensor(1.)
    """
    k = logits.shape[-1]
    mask = check_mask(mask, logits)
    probabilities = blank(logits, mask).softmax(-1)
    # Counts above 256 are no bfloat16 numbers.
    wide = torch.promote_types(logits.dtype, torch.float32)
    present = torch.ones_like(logits[..., 0], dtype=torch.bool) if mask is None else mask
    total = present.sum(-1, keepdim=True).clamp(min=1)
    mean = (probabilities.to(wide) * present.unsqueeze(-1)).sum(-2) / total
    if choices is None:
        shares = mean.detach()
    else:
        meant = present.expand(choices.shape) if counted is None else present & counted
        shares = expert_counts(choices, meant, k).to(wide) / total
    return k * (shares * mean).sum(-1).to(logits.dtype)


def z_loss(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""
    Router z-loss :math:`\frac1n\sum_i (\log\sum_j e^{\phi_{ij}})^2`, which keeps logits small. Zoph et al. (2022),
    "ST-MoE", eq. 5.

    :param logits: router logits, (*batch, n, k).
    :param mask: bool, broadcastable to (*batch, n), False for padding.
    :returns: (*batch).
    """
    mask = check_mask(mask, logits)
    squares = blank(logits, mask).logsumexp(-1).square()
    present = torch.ones_like(squares, dtype=torch.bool) if mask is None else mask
    return squares.masked_fill(~present, 0.0).sum(-1) / present.sum(-1).clamp(min=1)


def check_weight(name: str, weight: float) -> None:
    """
    :raises ValueError: if the weight of a loss is negative or not finite.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name} must be a weight >= 0, got {weight!r}")
