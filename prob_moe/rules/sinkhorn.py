"""S-BASE: the best expert of an entropy-regularised balanced plan."""

from torch import Tensor

from prob_moe.experts.validation import check_positive_int
from prob_moe.numerics import sinkhorn_log_plan
from prob_moe.rules.base import RoutingRule, SparseRouting, top_choices


class SinkhornBASE(RoutingRule):
    r"""
    S-BASE: every datapoint goes to its best expert in the balanced plan P of the logits, which
    :func:`~prob_moe.numerics.sinkhorn_log_plan` finds:

    .. math:: z_i = \arg\max_j P_{ij} \text{ (in training)},\quad z_i = \arg\max_j s_{ij} \text{ (in serving)},\qquad
        y_i = \sigma(s_{i z_i}) f_{z_i}(x_i).

    The plan is balanced, the choices are so only nearly; what exceeds a capacity is dropped, first come, first served.

    **Objective:** the loss of its own output, experts fixed by the plan. **Gradient:** through the gate
    :math:`\sigma(s_{i z_i})` only; none flows through the plan. Biased for the router objective and for the balanced
    objective; exact for its own where no choice changes. **Cost** O(nk) an iteration, on the device of the logits.
    The plan looks at all datapoints of the batch, the future of a sequence too; serving does not.

    Source: Clark et al. (2022), "Unified scaling laws for routed language models", Sinkhorn-BASE.

    :param capacity: the most datapoints of one batch that an expert processes; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.
    :param max_iterations: the most iterations of the plan.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> logits = torch.randn(1000, 4) + torch.tensor([3.0, 2.0, 1.0, 0.0])
    >>> logits.argmax(-1).bincount(), SinkhornBASE()(logits).assignment[0].bincount()
    (tensor([704, 236,  51,   9]), tensor([238, 259, 246, 257]))
    """

    objective = "its own output's loss, experts fixed by the plan"

    def __init__(
        self, *, capacity: int | None = None, capacity_factor: float | None = None, max_iterations: int = 100
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        check_positive_int("max_iterations", max_iterations)
        self.max_iterations = max_iterations

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return logits.mT.gather(-2, choices).sigmoid(), None

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        """
        :raises ValueError: on a wrong dtype or shape.
        """
        logits, mask = self.prepare(logits, mask)
        scores = logits
        if self.training:
            scores = sinkhorn_log_plan(logits, mask=mask, max_iterations=self.max_iterations)
        choices = top_choices(scores, 1)
        return self.to_experts(logits, mask, choices, logits.mT.gather(-2, choices).sigmoid())
