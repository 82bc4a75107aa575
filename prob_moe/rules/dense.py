"""Every expert on every datapoint: the dense mixture, and DenseMixer, which uses it for gradients only."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prob_moe.experts import BatchedExperts
from prob_moe.experts.validation import check_positive_int
from prob_moe.rules.base import Routing, RoutingRule, top_choices
from prob_moe.rules.straight_through import StraightThroughRouting


@dataclass(frozen=True)
class DenseRouting(Routing):
    r"""
    All experts, weighted: :math:`y_i = \sum_j w_{ij} f_j(x_i)`.

    :param weights: w, (*batch, n, k).
    :param loss: (*batch).
    :param mask: bool (*batch, n), False for padding, whose output is 0; None where there is none.
    """

    weights: Tensor
    loss: Tensor
    mask: Tensor | None = None

    def output(self, experts: BatchedExperts, x: Tensor) -> Tensor:
        weights = self.weights
        if self.mask is not None:
            # Whatever stands in padding must not reach a gradient.
            x = x.masked_fill(~self.mask.unsqueeze(-1), 0.0)
            weights = weights.masked_fill(~self.mask.unsqueeze(-1), 0.0)
        return (weights.unsqueeze(-2) @ experts.dense(x)).squeeze(-2)


class DenseMixture(RoutingRule):
    r"""
    The mean of all experts under the router: :math:`y_i = \sum_j p_{ij} f_j(x_i)`, :math:`p_i =
    \mathrm{softmax}(\phi_i)`.

    **Objective:** its own deterministic model, :math:`L(\sum_j p_j f_j)`, for which the gradient is exact. There is
    nothing to choose or drop, hence no capacity, no bias and no variance; the cost is that of k experts on every
    datapoint, in training and serving. For linear L it is the ungated objective :math:`E_{z\sim p}[L(f_z)]`.

    **Source:** Jacobs, Jordan, Nowlan & Hinton (1991), "Adaptive Mixtures of Local Experts", eq. 1.1.
    """

    objective = "deterministic L(sum_j p_j f_j)"

    def __init__(self) -> None:
        super().__init__()

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> DenseRouting:
        logits, mask = self.prepare(logits, mask)
        return DenseRouting(logits.softmax(-1), logits.new_zeros(logits.shape[:-2]), mask)


class DenseMixer(RoutingRule):
    r"""
    Top-m forward, dense backward:

    .. math:: y_i = \sum_{j \in \mathrm{top}_m} p_{ij} f_j(x_i), \qquad
        \nabla_p y_i = \sum_j f_j(x_i) \nabla p_{ij},\quad p_i = \mathrm{softmax}(\phi_i).

    Training pays for the outputs of all experts, forward only; the experts get the gradient of the sparse output.
    Where capacity drops a datapoint, there is neither output nor gradient.

    **Objective:** the deterministic :math:`L(y)` of this y, of which it takes choosing to be differentiable.
    **Exact for** the dense mixture's :math:`L(\sum_j p_j f_j)` where L is linear, and for m = k, where both are the
    same. **Bias** otherwise: the slope of L is taken at the sparse output.

    **Source:** Yao et al. (2025), "DenseMixer: Improving MoE Post-Training with Precise Router Gradient".

    :param num_selected: m, experts per datapoint.
    :param capacity: the most datapoints of one batch that an expert processes, over all m choices; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.
    :raises ValueError: if ``num_selected`` is not a positive int, or exceeds the number of experts at the call.
    """

    objective = "deterministic L(sum_top p_j f_j), top_m taken to be differentiable"

    def __init__(
        self,
        *,
        num_selected: int = 1,
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        check_positive_int("num_selected", num_selected)
        self.num_selected = num_selected

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return logits.softmax(-1).mT.gather(-2, choices), None

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> StraightThroughRouting:
        logits, mask = self.prepare(logits, mask)
        p = logits.softmax(-1)
        choices = top_choices(logits, self.num_selected)
        gate = torch.gather(p.detach().mT, -2, choices)
        sparse = self.to_experts(logits, mask, choices, gate)
        return StraightThroughRouting(sparse, p, sparse.loss)
