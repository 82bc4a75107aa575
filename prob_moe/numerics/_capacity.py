"""The argument ``capacity`` of the functions of this folder: an int, or a number for every problem of a batch."""

import math

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
        if capacity.numel() and (least := int(capacity.min())) < 1:
            raise ValueError(f"capacity must be a positive int for every problem, got {least}")
        return capacity
    if isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)) or capacity < 1:
        raise ValueError(f"capacity must be a positive int or a long tensor (*batch), got {capacity!r}")
    # Beyond any number of datapoints, a capacity only means a free slot.
    return torch.full((), min(int(capacity), 2**31), device=device).expand(batch)


def slots_of_experts(capacity: int | torch.Tensor, batch: tuple[int, ...], n: int, k: int) -> np.ndarray:
    """The argument ``capacity`` as kernels take it, and for an int without a single tensor: small problems are solved
    in the time of a few of their operations.

    :returns: slots of every expert of every problem, int64 (b, k), at most n + 1, as no expert holds more than n rows.
    :raises ValueError: as :func:`capacity_of_problems`.
    """
    size = math.prod(batch)
    if type(capacity) is int and capacity > 0:
        return np.full((size, k), min(capacity, n + 1), np.int64)
    capacities = capacity_of_problems(capacity, batch).numpy().reshape(size, 1)
    return np.repeat(np.minimum(capacities, n + 1), k, axis=1)
