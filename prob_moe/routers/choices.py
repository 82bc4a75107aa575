"""Routers that give a datapoint to several experts."""

import torch
from torch import Tensor

from prob_moe.routers.base import within_capacity


def assign_choices(choices: Tensor, valid: Tensor, capacity: int, num_experts: int) -> Tensor:
    """
    An assignment of several choices a datapoint: first choices come first, and what is not valid takes no capacity.

    :param choices: long (*batch, m, n).
    :param valid: bool (*batch, m, n).
    :returns: (*batch, m, n), e where processed and ``~e`` where not.
    """
    placed = within_capacity(choices.flatten(-2), capacity, num_experts, valid.flatten(-2)).unflatten(
        -1, choices.shape[-2:]
    )
    return torch.where(valid, placed, ~choices)
