"""What all experts do alike: from datapoints and an assignment to outputs in the order of the datapoints."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from prob_moe.experts.gather import combine, dispatch
from prob_moe.experts.plan import dispatch_plan, expert_loads, flat_entries, room_for_all
from prob_moe.experts.validation import check_features


class Experts(nn.Module, ABC):
    """
    Base of k experts, y_i = f_{e(i)}(x_i), each applied to the datapoints that an assignment gives to it.

    A subclass sets ``num_experts`` and knows how to process slots.
    """

    #: k
    num_experts: int
    #: whether x is added to the output
    residual = False
    #: d, where it is known
    in_features: int | None = None

    @abstractmethod
    def forward_dispatched(self, inputs: Tensor) -> Tensor:
        """
        Every expert on its own slots, without the residual.

        :param inputs: (*batch, k, c, d), as :func:`dispatch` makes it.
        :returns: (*batch, k, c, out).
        """

    def forward(
        self,
        x: Tensor,
        assignment: Tensor,
        *,
        capacity: int | None = None,
        num_selected: int | None = None,
        mask: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> Tensor:
        """
        :param x: (*batch, n, d); leading dimensions broadcast to those of the assignment.
        :param assignment: long (*batch, n); e for expert e, ~e for dropped.
        :param capacity: c, slots of every expert, which fixes all shapes; None for room for all, whatever is fastest,
            which waits for the device.
        :param num_selected: m experts for every datapoint: then the assignment is (*batch, m, n), and so is the output.
        :param mask: bool (*batch, n); False for padding, which takes no slot.
        :param validate_args: whether to check the assignment's values, see :func:`dispatch_plan`.
        :returns: (*batch, n, out), or (*batch, m, n, out); zero rows (x with ``residual``) where dropped or masked.
        :raises ValueError: an argument does not fit, see :func:`dispatch_plan`.
        """
        entries, present = flat_entries(assignment, num_selected, mask)
        self._check_shapes(x, assignment, entries.shape[:-1])
        several = num_selected or 1
        if capacity is None:
            out = self._with_room_for_all(x, entries, present, several, validate_args)
        else:
            out = self._in_slots(x, entries, present, capacity, several, validate_args)
        if num_selected is not None:
            out, x = out.unflatten(-2, assignment.shape[-2:]), x.unsqueeze(-3)
        return x + out if self.residual else out

    def _check_shapes(self, x: Tensor, assignment: Tensor, batch: torch.Size) -> None:
        if self.in_features is not None:
            check_features("x", x, (assignment.shape[-1], self.in_features), batch)

    def _with_room_for_all(
        self, x: Tensor, entries: Tensor, present: Tensor | None, num_selected: int, validate_args: bool | None
    ) -> Tensor:
        capacity = room_for_all(expert_loads(entries, self.num_experts, present))
        return self._in_slots(x, entries, present, capacity, num_selected, validate_args)

    def _in_slots(
        self,
        x: Tensor,
        entries: Tensor,
        present: Tensor | None,
        capacity: int,
        num_selected: int,
        validate_args: bool | None,
    ) -> Tensor:
        """
        :param entries: the assignment, (*batch, m·n).
        :returns: (*batch, m·n, out).
        """
        plan = dispatch_plan(entries, self.num_experts, capacity, present, validate_args=validate_args)
        return combine(self.forward_dispatched(dispatch(x, plan, num_selected=num_selected)), plan)
