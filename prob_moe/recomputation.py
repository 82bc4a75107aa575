"""What must happen once per step, however often activation checkpointing runs a forward pass."""

import torch


def recomputing() -> bool:
    """
    :returns: whether autograd itself runs the code that asks: a forward pass repeated for the backward pass, by
        ``torch.utils.checkpoint``, reentrant or not.
    """
    # The id of the backward pass that this thread works for, -1 outside of one; what torch's own checkpointing asks.
    return bool(torch._C._current_graph_task_id() != -1)
