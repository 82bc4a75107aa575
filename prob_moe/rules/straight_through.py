"""Straight through: outputs of few experts, gradients to the router as if all had been used."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prob_moe._transforms import carries_derivative
from prob_moe.experts import BatchedExperts
from prob_moe.rules.base import Routing, SparseRouting


@dataclass(frozen=True)
class StraightThroughRouting(Routing):
    r"""
    The output is that of a sparse routing, the gradient to the router that of a dense one:

    .. math:: y_i = y_i^{\mathrm{sparse}} + \sum_j (w_{ij} - \mathrm{sg}[w_{ij}])\, \mathrm{sg}[f_j(x_i)].

    Experts and inputs get the gradient of the sparse output. A datapoint that every expert dropped gives no gradient.
    It costs every expert on every datapoint, forward only, whenever the weights ask for a gradient.

    :param sparse: what is put out, with gates that carry no gradient.
    :param weights: w, whose gradient is the router's, (*batch, n, k).
    :param loss: (*batch).
    """

    sparse: SparseRouting
    weights: Tensor
    loss: Tensor

    @property
    def chosen(self) -> Tensor:
        return self.sparse.assignment

    def with_experts(self, assignment: Tensor, gate: Tensor, carry: Tensor | None) -> "StraightThroughRouting":
        return replace(self, sparse=self.sparse.with_experts(assignment, gate.detach(), carry))

    def output(self, experts: BatchedExperts, x: Tensor) -> Tensor:
        out = self.sparse.output(experts, x)
        if not carries_derivative(self.weights):
            return out
        processed = (self.sparse.assignment >= 0).any(-2).unsqueeze(-1)
        with torch.no_grad():
            # Whatever stands in padding must not reach the gradient.
            dense = experts.dense(x.masked_fill(~processed, 0.0)).detach()  # in forward mode too
        weights = self.weights * processed
        return out + ((weights - weights.detach()).unsqueeze(-2) @ dense).squeeze(-2)
