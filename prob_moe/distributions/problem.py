"""The routing problem that an assignment distribution solves, and what a value says by itself."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.poutine.util import is_validation_enabled
from torch import Tensor

from prob_moe._copies import copy_off_the_graph
from prob_moe.distributions.capacity import (
    check_all_selected,
    check_capacity_values,
    check_room,
    describe_capacity,
    resolve_capacity,
)
from prob_moe.distributions.checks import check_logit_values, check_logits, check_mask, check_num_selected, check_value
from prob_moe.distributions.sets import entries_of
from prob_moe.distributions.support import AssignmentConstraint, expert_counts, router_choices, router_logits


class RoutingProblem(TorchDistribution):
    """
    Router logits of n datapoints and k experts, their capacity, which datapoints are padding, and how many experts each
    gets: what all procedures are given, with the shapes, the support and the coding of their values. The law is that of
    :class:`~prob_moe.distributions.AssignmentDistribution`, which documents the arguments.
    """

    arg_constraints = {"logits": router_logits}  # noqa: RUF012  (torch's form)
    has_rsample = False
    #: whether the procedure can drop a datapoint
    drops = False
    #: whether `capacity` bounds the loads
    limited = True

    def __init__(
        self,
        logits: Tensor,
        *,
        capacity: int | Tensor | None = None,
        capacity_factor: float | None = None,
        num_selected: int | None = None,
        mask: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        check_logits(logits)
        check_num_selected(num_selected, logits.shape[-1])
        #: m, the experts of every datapoint; None where values have no dimension for them
        self.num_selected = num_selected
        self.mask = check_mask(mask, logits)
        # Whatever stands in padding, NaN for one, must not reach a value or a gradient.
        self.logits = logits if self.mask is None else logits.masked_fill(~self.mask.unsqueeze(-1), 0.0)
        # torch would check `arg_constraints` too, with a message that cannot say what is wrong.
        super().__init__(*self.infer_shapes(logits.shape, num_selected=num_selected), validate_args=False)
        # Pyro's switch, not torch's, which torch.compile turns off for the whole process.
        self._validate_args = is_validation_enabled() if validate_args is None else validate_args
        self._set_capacity(capacity, capacity_factor)
        if self._validate_args and not check_logit_values(self.logits, num_selected or 1):
            self._check_forbidden()

    def _check_forbidden(self) -> None:
        """
        Called where logits forbid experts.

        :raises ValueError: if they leave no assignment.
        """

    def _set_capacity(self, capacity: int | Tensor | None, factor: float | None) -> None:
        try:
            #: the most datapoints that one expert processes, long (*batch); None where there is no limit
            self.capacity, self._largest = resolve_capacity(
                capacity, factor, self.logits, self.mask, self.num_selected or 1
            )
            if self.capacity is None:
                if self.limited and not self._may_lack_capacity:
                    raise ValueError("one of capacity and capacity_factor is needed")
                return
            if self._validate_args:
                check_capacity_values(self.capacity)
            if not self.limited:
                self.capacity, self._largest = None, None
            elif not self.drops:
                check_room(self.capacity, self._largest, self.logits, self.mask, look=self._validate_args)
            elif self.num_selected == self.num_experts:
                check_all_selected(self.capacity, self._largest, self.logits, self.mask, look=self._validate_args)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: {error}") from None

    # Shapes and names ------------------------------------------------------------------------------------------------

    @property
    def num_datapoints(self) -> int:
        """n"""
        return self.event_shape[-1]

    @property
    def num_experts(self) -> int:
        """k"""
        return self.logits.shape[-1]

    @property
    def _may_lack_capacity(self) -> bool:
        """Whether a procedure that keeps to a capacity has a meaning without one."""
        return False

    @property
    def slots(self) -> int:
        """
        How many slots every expert of the expert layer needs, a static int: the capacity, padding counted, at most n.

        From a capacity factor or an int it follows from shapes alone; a tensor of capacities is looked at.
        """
        n = self.num_datapoints
        if self.capacity is not None and self._largest is None:
            self._largest = int(self.capacity.max()) if self.capacity.numel() else 1
        return max(1, n if self._largest is None else min(self._largest, n))

    @property
    def support(self) -> AssignmentConstraint:
        return AssignmentConstraint(self.num_experts, self.capacity, self.drops, self.mask, self.num_selected)

    @classmethod
    def infer_shapes(
        cls, logits: torch.Size, *, num_selected: int | None = None, **kwargs: Any
    ) -> tuple[torch.Size, torch.Size]:
        """:returns: batch shape and event shape for logits of a given shape."""
        several = () if num_selected is None else (num_selected,)
        return torch.Size(logits[:-2]), torch.Size((*several, *logits[-2:-1]))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "RoutingProblem":
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(batch_shape + self.logits.shape[-2:])
        new.mask = None if self.mask is None else self.mask.expand(batch_shape + self.event_shape[-1:])
        new.num_selected = self.num_selected
        new.capacity = None if self.capacity is None else self.capacity.expand(batch_shape)
        new._largest = self._largest
        super(RoutingProblem, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> "RoutingProblem":
        return copy_off_the_graph(self, memo)

    def __repr__(self) -> str:
        shape = tuple(self.logits.shape)
        several = "" if self.num_selected is None else f", num_selected={self.num_selected}"
        return f"{type(self).__name__}(logits of shape {shape}, capacity={describe_capacity(self.capacity)}{several})"

    # What a value says -----------------------------------------------------------------------------------------------

    def processed(self, value: Tensor) -> Tensor:
        """:returns: which entries are processed by an expert, bool (*, n) or (*, m, n)."""
        return value >= 0

    def loads(self, value: Tensor) -> Tensor:
        """:returns: processed datapoints per expert, long (*, k)."""
        flat = value if self.num_selected is None else value.flatten(-2)
        return expert_counts(router_choices(flat), flat >= 0, self.num_experts)

    def router_log_prob(self, value: Tensor) -> Tensor:
        r"""
        The router's own log-probability :math:`\log p_i(z_i)` of every choice, dropped or not; 0 for padding.

        :returns: nats, (*, n) or (*, m, n), differentiable in the logits; in float32 at least.
        """
        log_p = self.logits.log_softmax(-1, dtype=self._wide)
        picked = entries_of(log_p, router_choices(value), self.num_selected)
        mask = self._entry_mask
        return picked if mask is None else torch.where(mask, picked, torch.zeros_like(picked))

    # Coding ----------------------------------------------------------------------------------------------------------

    @property
    def _wide(self) -> torch.dtype:
        """The dtype of weights and log-probabilities: half precision is too coarse for ratios and sums."""
        return torch.promote_types(self.logits.dtype, torch.float32)

    def _code_padding(self, value: Tensor) -> Tensor:
        mask = self._entry_mask
        return value if mask is None else value.masked_fill(~mask, -1)

    def _present(self, like: Tensor) -> Tensor:
        """Which entries are not padding, bool of the shape of ``like``, (*, n) or (*, m, n)."""
        mask = self._entry_mask
        return torch.ones_like(like, dtype=torch.bool) if mask is None else mask.expand(like.shape)

    @property
    def _entry_mask(self) -> Tensor | None:
        """The mask as it meets the entries of a value: (*batch, n) or (*batch, 1, n)."""
        return self.mask if self.mask is None or self.num_selected is None else self.mask.unsqueeze(-2)

    def _validate_sample(self, value: Tensor) -> None:
        check_value(self, value)
