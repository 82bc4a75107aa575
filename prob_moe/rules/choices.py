"""Routers that give a datapoint to several experts."""

import torch
from torch import Tensor

from prob_moe.rules.base import within_capacity


def assign_choices(
    choices: Tensor, valid: Tensor, capacity: int | Tensor, num_experts: int, mask: Tensor | None = None
) -> Tensor:
    """
    An assignment of several choices a datapoint, where not every choice is meant: what is not valid takes no capacity.

    :param choices: long (*batch, m, n), best choices first; all first choices come before all second ones.
    :param valid: bool (*batch, m, n).
    :param capacity: an int, or a long tensor (*batch).
    :param mask: bool (*batch, n), False for padding, whose entries become -1.
    :returns: (*batch, m, n), e where processed and ``~e`` where not.

    >>> assign_choices(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[True, True], [False, True]]), 1, 2)
    tensor([[ 0,  1],
            [-2, -1]])
    """
    if mask is not None:
        valid = valid & mask.unsqueeze(-2)
    one_queue = choices.flatten(-2).unsqueeze(-2)
    placed = within_capacity(one_queue, capacity, num_experts, valid.flatten(-2)).reshape(choices.shape)
    assignment = torch.where(valid, placed, ~choices)
    return assignment if mask is None else torch.where(mask.unsqueeze(-2), assignment, -1)


def renormalised_gates(logits: Tensor, choices: Tensor) -> Tensor:
    """
    The probabilities of given experts, renormalised over these.

    :param logits: (*batch, n, k).
    :param choices: long (*batch, m, n).
    :returns: (*batch, m, n), 0 for a forbidden expert.

    >>> renormalised_gates(torch.tensor([[0.5, 0.3, 0.2]]).log(), torch.tensor([[0], [1]])).mT
    tensor([[0.6250, 0.3750]])
    """
    scores = logits.mT.gather(-2, choices)
    allowed = scores > -torch.inf
    # All experts of a record may be forbidden by now: gates of 0 then, and no NaN.
    scores = scores.masked_fill(~allowed.any(-2, keepdim=True), 0.0)
    return scores.softmax(-2).masked_fill(~allowed, 0.0)
