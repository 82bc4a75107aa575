"""Sparsity-constrained transport: the plan chooses at most m experts per datapoint, and is the gate."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prob_moe.distributions.support import router_choices
from prob_moe.experts.validation import check_positive_int
from prob_moe.numerics import sparse_transport, transport_rows
from prob_moe.rules.base import Routing, RoutingRule, SparseRouting, top_choices
from prob_moe.rules.choices import assign_choices


@dataclass(frozen=True, kw_only=True)
class PlanRouting(SparseRouting):
    """
    A sparse routing by a plan.

    :param prices: of the plan, (*batch, k) float64, with gradient.
    """

    prices: Tensor


class SparsityConstrainedTransport(RoutingRule):
    r"""
    The balanced plan T of the router's probabilities, quadratically regularised, with at most m experts per datapoint:

    .. math:: T = \arg\max_T \sum_{ij} T_{ij} p_{ij} - \tfrac\gamma2 \sum_{ij} T_{ij}^2,\qquad
        y_i = \sum_{j:\, T_{ij} > 0} T_{ij} f_j(x_i),

    over the plans whose datapoints sum to 1 and whose experts sum to n/k, by
    :func:`~prob_moe.numerics.sparse_transport`. The sums are balanced, the numbers of datapoints are not: an expert
    may hold many small entries.

    **Objective:** the loss of its own, deterministic output. **Gradient:** through the plan, with the reaction of all
    prices to a logit, by implicit differentiation at fixed support. It is exact for itself, for almost all logits,
    where the experts' sums are met: always for m = k; for m < k where γ is so small that the limit hardly binds.
    Where it binds, the plan jumps at ties of the prices and this gradient does not see the jumps: it is biased, even
    for itself. With ``gate="softmax"`` it goes through the softmax only. Biased for the router objective. **Cost** of
    an L-BFGS in k variables, O(nk log k) a step, in training and in serving, on the device of the logits. The plan
    looks at all datapoints of the batch, the future of a sequence too.

    **A replay** keeps the experts of every datapoint and the prices of the present plan: its gates are what a datapoint
    would have of its recorded experts at these prices, :func:`~prob_moe.numerics.transport_rows`. A record of the
    present plan gives that plan; over other experts datapoints still sum to 1, but nothing balances the experts. With
    ``gate="softmax"`` they are the present p.

    Source: Liu, Puigcerver & Blondel (2023), "Sparsity-constrained optimal transport". The abstract's form limits the
    datapoints of an expert; this one, which the authors' code has too, the experts of a datapoint. That code
    transports softmaxes, as here, and uses them for the gate by default.

    :param num_selected: m.
    :param gate: "plan", or "softmax" for :math:`g_{ij} = p_{ij}`. For m = 1 every entry of the plan is 1 and has no
        gradient: then only "softmax" trains a router.
    :param regularization: γ; the plan of a small γ is sparse by itself. The authors' code has 1, with which the limit
        of m = 2 binds almost everywhere.
    :param max_iterations: the most steps of the solver.
    :param capacity: the most datapoints of one batch that an expert processes, larger entries of a datapoint first; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.
    :raises ValueError: if an option is out of its range.

    >>> router = SparsityConstrainedTransport(num_selected=2, regularization=1.0)
    >>> router(torch.tensor([[3.0, 0.0], [1.0, 0.0]])).gate
    tensor([[0.6108, 0.6108],
            [0.3892, 0.3892]])
    """

    objective = "its own output's loss"

    def __init__(
        self,
        *,
        num_selected: int = 2,
        gate: Literal["plan", "softmax"] = "plan",
        regularization: float = 0.1,
        max_iterations: int = 200,
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        check_positive_int("num_selected", num_selected)
        check_positive_int("max_iterations", max_iterations)
        if gate not in ("plan", "softmax"):
            raise ValueError(f'gate must be "plan" or "softmax", but is {gate!r}')
        if gate == "plan" and num_selected == 1:
            raise ValueError(
                'gate="plan" has no gradient with num_selected=1, because every entry of the plan is 1; '
                'give gate="softmax", or select more experts'
            )
        if not 0 < regularization < math.inf:
            raise ValueError(f"regularization must be positive and finite, but is {regularization!r}")
        self.num_selected = num_selected
        self.gate = gate
        self.regularization = regularization
        self.max_iterations = max_iterations

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> PlanRouting:
        """
        :raises ValueError: on a wrong dtype or shape, and on fewer experts than ``num_selected``.
        """
        logits, mask = self.prepare(logits, mask)
        p = logits.softmax(-1)
        plan, prices, _ = sparse_transport(
            p if self.gate == "plan" else p.detach(),
            min(self.num_selected, logits.shape[-1]),
            regularization=self.regularization,
            mask=mask,
            max_iterations=self.max_iterations,
        )
        choices = top_choices(plan.detach(), self.num_selected)
        entries = plan.mT.gather(-2, choices)
        # An expert that the plan does not use leaves its place to the first one, twice: so a record knows who was used.
        choices = torch.where(entries > 0, choices, choices[..., :1, :])
        gate = entries if self.gate == "plan" else p.mT.gather(-2, choices)
        capacity, slots = self.capacity_of(logits, mask)
        return PlanRouting(
            assign_choices(choices, entries > 0, capacity, logits.shape[-1], mask),
            torch.where(entries > 0, gate, 0.0),
            slots,
            logits.new_zeros(logits.shape[:-2]),
            prices=prices,
        )

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        """Of ``gate="softmax"``: those of a plan follow from the whole batch, see :meth:`~RoutingRule.replay`."""
        return logits.softmax(-1).mT.gather(-2, choices), None

    def replay(self, routing: Routing, logits: Tensor, mask: Tensor | None, assignment: Tensor) -> Routing:
        if self.gate == "softmax":
            return super().replay(routing, logits, mask, assignment)
        assert isinstance(routing, PlanRouting)
        p, choices = logits.softmax(-1), router_choices(assignment)
        allowed = torch.zeros_like(p, dtype=torch.bool).scatter(-1, choices.mT, True)
        rows = transport_rows(p, routing.prices, allowed, regularization=self.regularization, mask=mask)
        return routing.with_experts(assignment, rows.mT.gather(-2, choices), None)
