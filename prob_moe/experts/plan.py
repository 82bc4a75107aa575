"""From an assignment to slots: who sits where among the k·c slots of the experts."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from prob_moe.experts.validation import check_plan_shapes, check_plan_values, check_positive_int, should_check_values


class DispatchPlan(NamedTuple):
    """
    Where every datapoint sits and who sits in every slot: a partial bijection, stored in both directions so that
    moving data and moving its gradient are gathers alike.

    :param slots: long (*batch, n); datapoint i sits in slot ``e * c + s`` of its batch element, -1 if in none.
    :param sources: long (*batch, k, c); the datapoint in slot s of expert e, -1 if the slot is empty.
    :param loads: long (*batch, k); occupied slots of every expert, which are its first ones.
    """

    slots: Tensor
    sources: Tensor
    loads: Tensor


def flat_entries(assignment: Tensor, num_selected: int | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """
    An assignment of several experts to every datapoint, as :func:`dispatch_plan` takes it: choice after choice, so that
    entry i belongs to datapoint i % n.

    :param assignment: long (*batch, n), or (*batch, m, n) with ``num_selected``.
    :param num_selected: m, or None.
    :param mask: bool (*batch, n) of the datapoints, or None.
    :returns: assignment and mask, (*batch, n) or (*batch, m·n).
    :raises ValueError: ``assignment`` or ``mask`` does not have such a shape.
    """
    if num_selected is None:
        return assignment, mask
    check_positive_int("num_selected", num_selected)
    if assignment.dim() < 2 or assignment.shape[-2] != num_selected:
        raise ValueError(
            f"assignment must have shape (*batch, m, n) with num_selected = m = {num_selected}, but has shape "
            f"{tuple(assignment.shape)}"
        )
    if mask is None:
        return assignment.flatten(-2), None
    wanted = assignment.shape[:-2] + assignment.shape[-1:]
    if mask.shape != wanted:
        raise ValueError(f"mask must have shape {tuple(wanted)}, one entry per datapoint, but has {tuple(mask.shape)}")
    return assignment.flatten(-2), mask.unsqueeze(-2).expand(assignment.shape).flatten(-2)


def expert_loads(assignment: Tensor, num_experts: int, mask: Tensor | None = None) -> Tensor:
    """
    :param assignment: long (*batch, n), as :func:`dispatch_plan` takes it.
    :param mask: bool (*batch, n), or None.
    :returns: how many datapoints every expert processes, long (*batch, k).
    """
    processed = (assignment >= 0) & (assignment < num_experts)
    if mask is not None:
        processed = processed & mask
    zeros = torch.zeros(*assignment.shape[:-1], num_experts, dtype=torch.long, device=assignment.device)
    return zeros.scatter_add(-1, torch.where(processed, assignment, 0), processed.long())


def room_for_all(loads: Tensor) -> int:
    """:returns: how many slots the largest load wants, at least 1. Waits for the device."""
    return max(1, int(loads.max().item())) if loads.numel() else 1


def dispatch_plan(
    assignment: Tensor,
    num_experts: int,
    capacity: int,
    mask: Tensor | None = None,
    *,
    validate_args: bool | None = None,
) -> DispatchPlan:
    """
    Give every processed datapoint a slot of its expert, in the order of the datapoints.

    One stable sort by expert and two binary searches: O(n log n) time, O(n + kc) memory, deterministic, no host
    synchronisation apart from the checks of values.

        >>> plan = dispatch_plan(torch.tensor([1, 0, ~1, 1]), num_experts=2, capacity=2)
        >>> plan.slots
        tensor([ 2,  0, -1,  3])
        >>> plan.sources
        tensor([[ 1, -1],
                [ 0,  3]])

    :param assignment: long (*batch, n); entry e in {0..k-1} is processed by expert e, entry ~e (negative) was dropped.
    :param num_experts: k, a positive int.
    :param capacity: c, slots of every expert, a positive int.
    :param mask: bool (*batch, n); datapoints that are False are padding and take no slot.
    :param validate_args: whether to check the values of ``assignment``, which waits for the device. By default they are
        checked everywhere but on CUDA. Never checked while compiling. Unchecked, a datapoint beyond its expert's
        capacity or of an unknown expert gets no slot.
    :returns: the plan, with ``slots``, ``sources`` and ``loads``.
    :raises ValueError: wrong dtype, shape, ``num_experts`` or ``capacity``; with checks of values also an unknown
        expert or more datapoints than slots.
    """
    check_plan_shapes(assignment, num_experts, capacity, mask)
    n = assignment.shape[-1]
    device = assignment.device

    processed = (assignment >= 0) & (assignment < num_experts)
    if mask is not None:
        processed = processed & mask
    # Whoever takes no slot sorts behind the last expert.
    expert = torch.where(processed, assignment, num_experts)
    order = expert.argsort(dim=-1, stable=True)
    expert_sorted = expert.gather(-1, order)
    edges = torch.arange(num_experts + 1, device=device).expand(*assignment.shape[:-1], -1).contiguous()
    starts = torch.searchsorted(expert_sorted, edges)
    loads = starts.diff(dim=-1)
    if should_check_values(assignment, validate_args):
        check_plan_values(assignment, loads, capacity, mask)
    loads = loads.clamp(max=capacity)

    rank = torch.arange(n, device=device) - starts.gather(-1, expert_sorted)
    has_slot = (expert_sorted < num_experts) & (rank < capacity)
    slots_sorted = torch.where(has_slot, expert_sorted * capacity + rank, -1)
    slots = torch.zeros_like(assignment).scatter(-1, order, slots_sorted)

    # The extra column of -1 is the datapoint of every empty slot.
    place = torch.arange(capacity, device=device)
    position = torch.where(place < loads.unsqueeze(-1), starts[..., :-1, None] + place, n)
    sources = pad(order, (0, 1), value=-1).gather(-1, position.flatten(-2)).unflatten(-1, (num_experts, capacity))
    return DispatchPlan(slots, sources, loads)
