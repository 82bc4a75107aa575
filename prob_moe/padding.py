"""
What stands in padding changes nothing, not a value and not a gradient.

To leave padding out of a sum is not enough: a NaN in it reaches the gradient of a linear map as 0 · NaN. So it is
replaced before anything is computed.
"""

import torch
from torch import Tensor


def blank(x: Tensor, mask: Tensor | None) -> Tensor:
    """
    :param x: (*batch, n, d).
    :param mask: bool, broadcastable with (*batch, n), False for padding, or None.
    :returns: x with zeros in padding.
    """
    return x if mask is None else torch.where(mask.unsqueeze(-1), x, x.new_zeros(()))


def fill(y: Tensor, mask: Tensor | None, event_dim: int = 0) -> Tensor:
    """
    Observations that a likelihood can be asked about: padding gets the first observation that is none, which lies in
    the support, be it of integers, positive numbers or vectors. Where all is padding it gets 0.

    :param y: (*batch, n, *event).
    :param mask: bool, broadcastable to (*batch, n), False for padding, or None.
    :param event_dim: number of dimensions of an observation.

    >>> fill(torch.tensor([torch.nan, 2.0, 3.0]), torch.tensor([False, True, True]))
    tensor([2., 2., 3.])
    """
    if mask is None:
        return y
    batch, event = y.shape[: y.dim() - event_dim], y.shape[y.dim() - event_dim :]
    batch = torch.broadcast_shapes(batch, mask.shape)
    y, mask = y.expand(batch + event), mask.expand(batch)
    # Indices stay tensors: nothing waits for the device.
    first = mask.reshape(-1).to(torch.int8).argmax(0, keepdim=True)
    legal = y.reshape(-1, *event).index_select(0, first)[0]
    legal = torch.where(mask.any(), legal, torch.zeros_like(legal))
    return torch.where(mask.reshape(batch + (1,) * event_dim), y, legal)
