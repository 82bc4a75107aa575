"""The argument ``capacity`` of the functions of this folder: an int, or a number for every problem of a batch."""

import numpy as np
import torch


def capacity_of_problems(
    capacity: int | torch.Tensor, batch: tuple[int, ...], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """
    :param batch: the batch shape of the problems.
    :returns: long (\\*batch) on the device.
    :raises ValueError: for anything but positive ints, or a shape that does not broadcast.
    """
    if isinstance(capacity, torch.Tensor) and capacity.dtype == torch.long:
        try:
            capacity = capacity.to(device).expand(batch)
        except RuntimeError:
            raise ValueError(
                f"capacity of shape {tuple(capacity.shape)} does not broadcast to the batch shape {tuple(batch)}"
            ) from None
        if capacity.numel() and bool((capacity < 1).any()):
            raise ValueError(f"capacity must be a positive int for every problem, got {int(capacity.min())}")
        return capacity
    if isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)) or capacity < 1:
        raise ValueError(f"capacity must be a positive int or a long tensor (*batch), got {capacity!r}")
    # Beyond any number of datapoints, a capacity only means a free slot.
    return torch.full((), min(int(capacity), 2**31), device=device).expand(batch)
