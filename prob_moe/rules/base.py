"""What all alternatives have in common: from router logits to a routing, from a routing to outputs."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prob_moe._copies import copy_off_the_graph
from prob_moe.distributions.capacity import resolve_capacity
from prob_moe.distributions.checks import check_logit_values, check_logits, check_mask
from prob_moe.distributions.support import router_choices
from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_positive_int, should_check_values


class Routing(ABC):
    """
    What a router decided about one batch. A subclass is one way to use experts.

    :param loss: the router's auxiliary loss, in units of the loss per datapoint, to be added to it; (*batch).
    """

    loss: Tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> "Routing":
        return copy_off_the_graph(self, memo)

    @property
    def chosen(self) -> Tensor | None:
        """
        Who goes to which expert, long (*batch, m, n), e, or ``~e`` where the expert does not process; None where no
        experts are chosen.
        """
        return None

    def with_experts(self, assignment: Tensor, gate: Tensor, carry: Tensor | None) -> "Routing":
        """
        :param assignment: coded as :attr:`chosen`.
        :param gate: (*batch, m, n).
        :param carry: see :class:`SparseRouting`.
        :returns: the same routing by other experts, of any number of slots.
        """
        raise NotImplementedError(f"{type(self).__name__} chooses no experts that others could stand for")

    @abstractmethod
    def output(self, experts: BatchedExperts, x: Tensor) -> Tensor:
        """
        :param experts: the k experts.
        :param x: datapoints, (*batch, n, d).
        :returns: what the layer puts out, (*batch, n, out_features).
        """


@dataclass(frozen=True)
class SparseRouting(Routing):
    r"""
    Every datapoint goes to at most m experts: :math:`y_i = \sum_m g_{mi}\, f_{z_{mi}}(x_i) + r_i x_i`.

    :param assignment: long (*batch, m, n), coded as an assignment distribution's value: e, or ``~e`` where dropped.
    :param gate: g, (*batch, m, n). What is dropped contributes 0, whatever its gate.
    :param slots: slots of an expert, an int: no batch element gives it more datapoints, over all m choices. None for
        experts to find out by themselves, which waits for the device.
    :param loss: (*batch).
    :param carry: r, (*batch, n): share of the input that passes by the experts, 0 for padding; None for 0.
    """

    assignment: Tensor
    gate: Tensor
    slots: int | None
    loss: Tensor
    carry: Tensor | None = None

    @property
    def chosen(self) -> Tensor:
        return self.assignment

    def with_experts(self, assignment: Tensor, gate: Tensor, carry: Tensor | None) -> "SparseRouting":
        return SparseRouting(assignment, gate, None, self.loss, carry)

    def output(self, experts: BatchedExperts, x: Tensor) -> Tensor:
        *batch, choices, n = self.assignment.shape
        x = x.expand(*batch, n, x.shape[-1])
        chosen = experts(x, self.assignment, capacity=self.slots, num_selected=choices)
        out_of_it = self.assignment < 0
        rows = self.gate.masked_fill(out_of_it, 0.0).unsqueeze(-1) * chosen
        # Experts with a residual pass on what they do not process, and 0 * NaN would be NaN.
        out = rows.masked_fill(out_of_it.unsqueeze(-1), 0.0).sum(-3)
        if self.carry is None:
            return out
        if x.shape[-1] != out.shape[-1]:
            raise ValueError(
                f"the router mixes the input into the output, but x has {x.shape[-1]} features and the experts put "
                f"out {out.shape[-1]}; give experts with out_features = in_features"
            )
        # Padding has nothing to carry, NaN for one.
        carry = self.carry.unsqueeze(-1)
        return out + carry * x.masked_fill(carry == 0, 0.0)


class RoutingRule(nn.Module, ABC):
    """
    Base of the alternatives: deterministic or biased ways to route, as modules without global state.

    In training mode a router does what its source does while training, in evaluation mode (``.eval()``) what it serves
    with. Draws come from torch's generator.

    :param capacity: the most datapoints of one batch that an expert processes; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k) for a batch of n datapoints, padding not counted.
        Without either there is no limit.
    :raises ValueError: if both are given, or one is not positive.
    """

    #: the objective whose gradient the router aims at, in words
    objective: ClassVar[str]
    #: whether the parameters of the experts are averaged, which must be a BatchedExperts then
    merges_parameters: ClassVar[bool] = False

    def __init__(self, *, capacity: int | None = None, capacity_factor: float | None = None) -> None:
        super().__init__()
        resolve_capacity(capacity, capacity_factor, torch.empty(1, 1), None)
        if capacity is not None:
            check_positive_int("capacity", capacity)
        self.capacity = capacity
        self.capacity_factor = capacity_factor

    @abstractmethod
    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> Routing:
        """
        :param logits: router logits, float (*batch, n, k).
        :param mask: bool, broadcastable to (*batch, n), False for padding: it takes no capacity, no load and no loss.
        :raises ValueError: if the arguments do not fit, see :meth:`prepare`.
        """

    def update(self) -> None:
        """
        Move what is learnt without a gradient, once per optimiser step: after the backward pass, or by
        ``optimizer.register_step_post_hook(lambda *_: router.update())``. Most routers have nothing of that kind.

        No ``forward`` changes what another reads, so it can be repeated (activation checkpointing).
        """

    @property
    def counted(self) -> tuple[Tensor, ...]:
        """What :meth:`update` looks at, summed over all datapoints of a step: processes that share them add it up."""
        return ()

    @property
    def waits_for_update(self) -> bool:
        """Whether :meth:`update` moves something."""
        return type(self).update is not RoutingRule.update

    def num_logits(self, num_experts: int) -> int:
        """:returns: how many logits the router needs for each datapoint, to use k experts."""
        return num_experts

    def unlimited(self) -> "RoutingRule":
        """:returns: this rule without a capacity, for serving: nobody is dropped. It shares everything else."""
        served = copy.copy(self)
        served.capacity = served.capacity_factor = None
        return served

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, Tensor | None]:
        """
        What given experts would have for gates, for :meth:`replay`.

        :param logits: as :meth:`prepare` returns them, (*batch, n, k).
        :param choices: long (*batch, m, n).
        :returns: the gates (*batch, m, n), and the share of the input that passes by the experts, (*batch, n) or None.
        :raises NotImplementedError: if they do not follow from logits and choices.
        """
        raise NotImplementedError(f"{type(self).__name__} has no gates for experts that it did not choose: no replay")

    def replay(self, routing: Routing, logits: Tensor, mask: Tensor | None, assignment: Tensor) -> Routing:
        """
        The routing of recorded experts by the rule's own formula.

        :param routing: what the rule decides now, whose losses stay.
        :param logits: as :meth:`prepare` returns them, (*batch, n, k).
        :param mask: likewise, (*batch, n) or None.
        :param assignment: as the :attr:`~Routing.chosen` of an earlier routing.
        :raises NotImplementedError: if the rule does not know what they contribute.
        """
        gate, carry = self.gates(logits, router_choices(assignment))
        if carry is not None and mask is not None:
            carry = torch.where(mask, carry, 0.0)
        return routing.with_experts(assignment, gate, carry)

    @staticmethod
    def prepare(logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """
        What a router's ``forward`` does first: check the arguments, and take whatever stands in padding out of them.

        :returns: the logits, 0 in padding, and the mask, (*batch, n) or None.
        :raises ValueError: on logits or a mask of a wrong dtype or shape; NaN, +inf or a row of -inf in logits, where
            values are checked (not on CUDA, nor while compiling).
        """
        check_logits(logits)
        mask = check_mask(mask, logits)
        if mask is not None:
            logits = logits.masked_fill(~mask.unsqueeze(-1), 0.0)
        if should_check_values(logits, None):
            check_logit_values(logits)
        return logits, mask

    def capacity_of(self, logits: Tensor, mask: Tensor | None = None) -> tuple[Tensor, int]:
        """
        :param logits: (*batch, n, k).
        :param mask: bool (*batch, n) or None.
        :returns: c of every batch element, long (*batch), n where there is no limit; and how many slots per expert
            needs, an int that follows from shapes alone.
        """
        n = max(1, logits.shape[-2])
        capacity, largest = resolve_capacity(self.capacity, self.capacity_factor, logits, mask)
        if capacity is None or largest is None:
            return torch.full((), n, device=logits.device).expand(logits.shape[:-2]), n
        return capacity, min(largest, n)

    def to_experts(
        self, logits: Tensor, mask: Tensor | None, choices: Tensor, gate: Tensor, loss: Tensor | None = None
    ) -> SparseRouting:
        """
        What most routers end with: the chosen experts, first come, first served.

        :param logits: as :meth:`prepare` returns them, (*batch, n, k).
        :param mask: likewise, (*batch, n) or None.
        :param choices: the chosen experts of every datapoint, long (*batch, m, n).
        :param gate: (*batch, m, n).
        :param loss: (*batch); None for 0.
        """
        capacity, slots = self.capacity_of(logits, mask)
        assignment = within_capacity(choices, capacity, logits.shape[-1], mask)
        return SparseRouting(assignment, gate, slots, logits.new_zeros(logits.shape[:-2]) if loss is None else loss)

    def extra_repr(self) -> str:
        options = {name: value for name, value in vars(self).items() if name != "training" and name[0] != "_"}
        return ", ".join(f"{name}={value}" for name, value in options.items() if value is not None)


def top_choices(scores: Tensor, num_selected: int) -> Tensor:
    """
    :param scores: (*batch, n, k).
    :param num_selected: m.
    :returns: the m experts of the highest scores, best first, long (*batch, m, n).
    :raises ValueError: if there are fewer than m experts.
    """
    if num_selected > scores.shape[-1]:
        raise ValueError(f"num_selected={num_selected} exceeds the number of experts, {scores.shape[-1]}; lower it")
    return scores.topk(num_selected, dim=-1).indices.mT


def within_capacity(choices: Tensor, capacity: int | Tensor, num_experts: int, mask: Tensor | None = None) -> Tensor:
    """
    First come, first served: an expert processes the first ``capacity`` datapoints that chose it, and drops the rest.
    All first choices come before all second ones.

    :param choices: the chosen experts of every datapoint, long (*batch, m, n).
    :param capacity: an int, or a long tensor (*batch).
    :param mask: bool (*batch, n), False for padding, whose entries become -1.
    :returns: the assignment, (*batch, m, n): e where processed, ``~e`` where dropped.

    >>> within_capacity(torch.tensor([[0, 0, 1, 0]]), capacity=2, num_experts=2)
    tensor([[ 0,  0,  1, -1]])
    """
    present = torch.ones_like(choices, dtype=torch.bool) if mask is None else mask.unsqueeze(-2).expand(choices.shape)
    # Padding sorts behind the last expert, so it takes no rank from a datapoint.
    queue = torch.where(present, choices, num_experts).flatten(-2)
    order = queue.argsort(dim=-1, stable=True)
    ordered = queue.gather(-1, order)
    place = torch.arange(queue.shape[-1], device=queue.device) - torch.searchsorted(ordered, ordered)
    rank = torch.zeros_like(queue).scatter(-1, order, place).view(choices.shape)
    limit = capacity[..., None, None] if isinstance(capacity, Tensor) else capacity
    assignment = torch.where(rank < limit, choices, ~choices)
    return torch.where(present, assignment, -1)
