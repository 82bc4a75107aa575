"""Expert choice: every expert takes the datapoints it is given the highest probability by."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_features
from prob_moe.rules.base import Routing, RoutingRule, SparseRouting


@dataclass(frozen=True)
class SlotRouting(Routing):
    r"""Every slot t of every expert j names its datapoint: :math:`y_i = \sum_{jt:\, \mathrm{source}_{jt} = i} g_{jt}
    f_j(x_i)`.

    :param sources: long (*batch, k, slots), the datapoint in every slot; -1 where a slot is empty.
    :param gate: g, (*batch, k, slots).
    :param num_datapoints: n.
    :param loss: (*batch).
    """

    sources: Tensor
    gate: Tensor
    num_datapoints: int
    loss: Tensor

    @property
    def chosen(self) -> Tensor:
        """Row j says which datapoints expert j took: (*batch, k, n), j or ``~j``."""
        *batch, k, _ = self.sources.shape
        places = self.sources.masked_fill(self.sources < 0, self.num_datapoints)
        taken = places.new_zeros((*batch, k, self.num_datapoints + 1), dtype=torch.bool).scatter(-1, places, True)
        expert = torch.arange(k, device=places.device).unsqueeze(-1)
        return torch.where(taken[..., :-1], expert, ~expert)

    def with_experts(self, assignment: Tensor, gate: Tensor, carry: Tensor | None) -> SparseRouting:
        return SparseRouting(assignment, gate, None, self.loss, carry)

    def output(self, experts: BatchedExperts, x: Tensor) -> Tensor:
        *batch, k, c = self.sources.shape
        check_features("x", x, (self.num_datapoints, experts.in_features or x.shape[-1]), torch.Size(batch))
        x = x.expand(*batch, *x.shape[-2:])
        filled = (self.sources >= 0).unsqueeze(-1)
        index = self.sources.clamp(min=0).flatten(-2).unsqueeze(-1)
        # An empty slot must not see its stand-in, which may be padding of any value.
        slots = x.gather(-2, index.expand(*batch, k * c, x.shape[-1])).unflatten(-2, (k, c))
        slots = torch.where(filled, slots, 0.0)
        out = experts.forward_dispatched(slots)
        if experts.residual:
            out = out + slots
        rows = torch.where(filled, self.gate.unsqueeze(-1) * out, 0.0).flatten(-3, -2)
        zeros = rows.new_zeros(*batch, self.num_datapoints, rows.shape[-1])
        return zeros.scatter_add(-2, index.expand(rows.shape), rows)


class ExpertChoice(RoutingRule):
    r"""
    Every expert takes the c datapoints whose routers give it the highest probability:

    .. math:: p_i = \mathrm{softmax}(s_i),\qquad T_j = \mathrm{top}_c\{p_{ij}\}_i,\qquad
        y_i = \sum_{j:\, i \in T_j} p_{ij} f_j(x_i).

    The softmax is over the experts of a datapoint, the selection over the datapoints of an expert. All experts are
    full; a datapoint may be taken by several experts or by none, which makes its output 0. The earlier datapoint wins
    a tie.

    **It leaks the future:** whether a datapoint is taken depends on all datapoints of the batch, later ones too. A
    decoder trained so has seen what it predicts, and cannot be served token by token.

    A replay gives datapoints to the experts that took them in the record, with the present p.

    **Objective:** the loss of its own, deterministic output. **Gradient:** through the gates p; exact but for the
    jumps of the selection, which it does not see. Biased for the router objective. **Cost** O(nk log n) to select, k
    c rows of experts; outputs are added up by a scatter, whose order of summation, hence rounding, varies on CUDA.

    Source: Zhou et al. (2022), "Mixture-of-Experts with Expert Choice routing".

    :param capacity: c, the datapoints that an expert takes; or
    :param capacity_factor: c = ceil(capacity_factor * n / k), the mean experts per datapoint; 2, the authors' choice,
        if neither is given.

    >>> ExpertChoice(capacity=1)(torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]])).sources
    tensor([[2],
            [1]])
    """

    objective = "its own output's loss"

    def __init__(self, *, capacity: int | None = None, capacity_factor: float | None = None) -> None:
        if capacity is None and capacity_factor is None:
            capacity_factor = 2.0
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)

    def unlimited(self) -> "ExpertChoice":
        """Experts that take everybody would be another rule: the capacity stays."""
        return self

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return logits.softmax(-1).mT.gather(-2, choices), None

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SlotRouting:
        """
        :raises ValueError: on a wrong dtype or shape.
        """
        logits, mask = self.prepare(logits, mask)
        *batch, n, _ = logits.shape
        p = logits.softmax(-1).mT
        scores = p.detach()
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(-2), -1.0)
        capacity, slots = self.capacity_of(logits, mask)
        sources = scores.argsort(dim=-1, descending=True, stable=True)[..., :slots]
        gate = p.gather(-1, sources)
        beyond = torch.arange(sources.shape[-1], device=logits.device) >= capacity[..., None, None]
        sources = sources.masked_fill((scores.gather(-1, sources) < 0) | beyond, -1)
        return SlotRouting(sources, gate, n, logits.new_zeros(batch))
