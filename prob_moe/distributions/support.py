"""Constraints: what router logits may be, and which assignments a procedure can produce."""

import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from prob_moe.distributions.capacity import describe_capacity


def expert_counts(experts: Tensor, counted: Tensor, num_experts: int) -> Tensor:
    """
    Count datapoints per expert.

    :param experts: expert of every datapoint, long (*, n), in ``[0, num_experts)``.
    :param counted: which datapoints count, bool (*, n).
    :returns: long (*, k).
    """
    # Out of place, so that provenance of the assignment survives.
    zeros = torch.zeros(*experts.shape[:-1], num_experts, dtype=torch.long, device=experts.device)
    return zeros.scatter_add(-1, experts, counted.long())


def router_choices(value: Tensor) -> Tensor:
    """The expert that the router chose, also where the datapoint was dropped (``~e`` codes a dropped choice of e)."""
    return torch.where(value < 0, ~value, value)


class _RouterLogits(Constraint):
    """Real numbers or minus infinity (a forbidden expert), with at least one allowed expert for every datapoint."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        legal = value < torch.inf  # False for NaN
        return legal.all(-1).all(-1) & (value > -torch.inf).any(-1).all(-1)


router_logits = _RouterLogits()


class AssignmentConstraint(Constraint):
    """
    Assignments of n datapoints to k experts, coded as in :class:`AssignmentDistribution`.

    :param num_experts: k.
    :param capacity: the most datapoints that one expert processes, an int or a long tensor (*batch), or None.
    :param drops: whether a datapoint may be dropped.
    :param mask: bool (*batch, n), False where the datapoint is padding and its entry is -1, or None.
    :param num_selected: m, the distinct experts of every datapoint, in ascending order, dropped or not; None for values
        of shape (*, n), with one expert per datapoint.
    """

    is_discrete = True

    def __init__(
        self,
        num_experts: int,
        capacity: int | Tensor | None,
        drops: bool,
        mask: Tensor | None = None,
        num_selected: int | None = None,
    ) -> None:
        self.num_experts = num_experts
        self.capacity = capacity
        self.drops = drops
        self.mask = mask
        self.num_selected = num_selected
        self.event_dim = 1 if num_selected is None else 2

    def check(self, value: Tensor) -> Tensor:
        """:returns: bool, the batch shape of ``value``, which is (*, n) or (*, m, n)."""
        choices = router_choices(value)
        in_range = choices < self.num_experts
        processed = value >= 0
        entry_ok = in_range if self.drops else in_range & processed
        if self.num_selected is not None:
            ascending = (choices.diff(dim=-2) > 0).all(-2, keepdim=True)
            entry_ok = entry_ok & ascending
        if self.mask is not None:
            mask = self.mask if self.num_selected is None else self.mask.unsqueeze(-2)
            entry_ok = torch.where(mask, entry_ok, value == -1)
        if self.num_selected is not None:
            entry_ok, choices, in_range, processed = (x.flatten(-2) for x in (entry_ok, choices, in_range, processed))
        ok = entry_ok.all(-1)
        if self.capacity is not None:
            loads = expert_counts(choices.clamp(max=self.num_experts - 1), processed & in_range, self.num_experts)
            most = self.capacity.unsqueeze(-1) if isinstance(self.capacity, Tensor) else self.capacity
            ok = ok & (loads <= most).all(-1)
        return ok

    def __repr__(self) -> str:
        drops = "with drops" if self.drops else "nobody dropped"
        capacity = describe_capacity(self.capacity) if isinstance(self.capacity, Tensor) else self.capacity
        several = "" if self.num_selected is None else f", {self.num_selected} for each datapoint"
        return f"AssignmentConstraint({self.num_experts} experts{several}, capacity {capacity}, {drops})"
