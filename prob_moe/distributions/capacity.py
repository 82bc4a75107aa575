"""How many datapoints an expert may process: a number for every batch element, by who is present in it."""

import math
from typing import overload

import torch
from torch import Tensor

#: beyond any number of datapoints, and small enough that its products fit a long
MOST = 2**31


@overload
def capacity_from_factor(capacity_factor: float, num_datapoints: int, num_experts: int) -> int: ...
@overload
def capacity_from_factor(capacity_factor: float, num_datapoints: Tensor, num_experts: int) -> Tensor: ...
def capacity_from_factor(capacity_factor: float, num_datapoints: int | Tensor, num_experts: int) -> int | Tensor:
    """
    Capacity of an expert, ``ceil(capacity_factor * n / k)``, at least 1.

    :param num_datapoints: n, an int, or a long tensor of any shape: how many are present in every batch element.
    :returns: an int, or a long tensor on the device of ``num_datapoints``.
    :raises ValueError: if the factor is not positive and finite.

    >>> capacity_from_factor(1.25, num_datapoints=100, num_experts=8)
    16
    >>> capacity_from_factor(1.25, torch.tensor([100, 50, 0]), num_experts=8)
    tensor([16,  8,  1])
    """
    if not 0 < capacity_factor < math.inf:
        raise ValueError(f"capacity_factor must be positive and finite, got {capacity_factor!r}")
    # A factor such as 1.1 is not exact in binary: 1.1 * 10 / 1 must be 11, not 12.
    if isinstance(num_datapoints, Tensor):
        share = capacity_factor * num_datapoints.double() / num_experts - 1e-9
        return share.ceil().clamp(1, MOST).long()
    return min(max(1, math.ceil(capacity_factor * num_datapoints / num_experts - 1e-9)), MOST)


def resolve_capacity(
    capacity: int | Tensor | None,
    capacity_factor: float | None,
    logits: Tensor,
    mask: Tensor | None,
    num_selected: int = 1,
) -> tuple[Tensor | None, int | None]:
    """
    What ``capacity`` and ``capacity_factor`` mean for logits (*batch, n, k) with a mask (*batch, n) or None.

    :param num_selected: how many experts each datapoint has: the factor counts n m / k.
    :returns: the capacity of every batch element, long (*batch) on the device of the logits, or None where neither is
        given; and the largest capacity that shapes alone tell, padding counted, or None where only the values do.
    :raises ValueError: if both are given, or one is not as it should be. The values of a tensor are not looked at.
    """
    *batch, n, k = logits.shape
    if capacity is not None and capacity_factor is not None:
        raise ValueError(f"give capacity or capacity_factor, not both (got {capacity} and {capacity_factor})")
    if capacity_factor is not None:
        largest = capacity_from_factor(capacity_factor, n * num_selected, k)
        if mask is not None:
            return capacity_from_factor(capacity_factor, mask.sum(-1) * num_selected, k), largest
        return torch.full((), largest, device=logits.device).expand(batch), largest
    if capacity is None:
        return None, None
    if isinstance(capacity, Tensor):
        if capacity.dtype != torch.long:
            raise ValueError(f"capacity must be a positive int, or a long tensor, got a tensor of {capacity.dtype}")
        try:
            return capacity.to(logits.device).expand(batch), None
        except RuntimeError:
            raise ValueError(
                f"capacity of shape {tuple(capacity.shape)} does not broadcast to the batch_shape {tuple(batch)} of "
                f"logits of shape {tuple(logits.shape)}"
            ) from None
    if isinstance(capacity, bool) or not isinstance(capacity, int) or capacity < 1:
        raise ValueError(f"capacity must be a positive int, got {capacity!r}; or a long tensor (*batch)")
    largest = min(capacity, MOST)
    return torch.full((), largest, device=logits.device).expand(batch), largest


def check_capacity_values(capacity: Tensor) -> None:
    """
    Looks at the values, which waits for the device.

    :raises ValueError: if one is not positive.
    """
    if capacity.numel() and int(capacity.min()) < 1:
        raise ValueError(f"capacity must be positive for every batch element, got {int(capacity.min())}")


def check_room(capacity: Tensor, largest: int | None, logits: Tensor, mask: Tensor | None, *, look: bool) -> None:
    """
    Whether the experts can process everybody, for procedures that cannot drop.

    :param capacity, largest: as :func:`resolve_capacity` returns them.
    :param look: whether to look at the values too, which waits for the device; else only what shapes tell is checked.
    :raises ValueError: if a batch element has more datapoints than slots.
    """
    n, k = logits.shape[-2:]
    if mask is None and largest is not None:
        if n > k * largest:
            raise ValueError(_too_many(n, largest, logits))
    elif look and capacity.numel():
        present = torch.full_like(capacity, n) if mask is None else mask.sum(-1)
        beyond = (present > k * capacity).flatten()
        if bool(beyond.any()):
            first = int(beyond.nonzero()[0])
            raise ValueError(_too_many(int(present.flatten()[first]), int(capacity.flatten()[first]), logits))


def check_all_selected(
    capacity: Tensor, largest: int | None, logits: Tensor, mask: Tensor | None, *, look: bool
) -> None:
    """
    Whether every expert can process everybody, where every datapoint selects all of them.

    :param capacity, largest, look: as in :func:`check_room`.
    :raises ValueError: if a batch element has more datapoints than an expert can process.
    """
    n, k = logits.shape[-2:]
    if mask is None and largest is not None:
        least, present = largest, n
    elif look and capacity.numel():
        everybody = torch.full_like(capacity, n) if mask is None else mask.sum(-1)
        worst = int((everybody - capacity).argmax())
        least, present = int(capacity.flatten()[worst]), int(everybody.flatten()[worst])
    else:
        return
    if least < present:
        raise ValueError(
            f"num_selected={k} selects all k = {k} experts for every datapoint, but capacity={least} lets an expert "
            f"process no more than that of n = {present}; select fewer experts, or give a capacity of at least n"
        )


def _too_many(present: int, capacity: int, logits: Tensor) -> str:
    k = logits.shape[-1]
    return (
        f"n = {present} datapoints exceed the k * capacity = {k} * {capacity} slots of the experts "
        f"(logits of shape {tuple(logits.shape)}); capacity must be at least {-(-present // k)}, or take a procedure "
        "that can drop: CapacitySkip or DependentRounding"
    )


def describe_capacity(capacity: Tensor | None) -> str:
    """
    >>> describe_capacity(torch.tensor([3, 3])), describe_capacity(torch.tensor([3, 5])), describe_capacity(None)
    ('3', '3 to 5', 'None')
    """
    if capacity is None or not capacity.numel():
        return "None"
    least, most = int(capacity.min()), int(capacity.max())
    return str(least) if least == most else f"{least} to {most}"
