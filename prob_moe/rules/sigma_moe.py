"""σ-MoE: the sum of a datapoint's m best experts, each with a gate of its own."""

import torch
from torch import Tensor

from prob_moe.distributions.noise import uniform_noise
from prob_moe.experts.validation import check_positive_int
from prob_moe.rules.base import RoutingRule, SparseRouting, top_choices
from prob_moe.rules.choices import assign_choices
from prob_moe.rules.losses import check_weight


class SigmaMoE(RoutingRule):
    r"""
    The m experts of the largest logits, without competition between their gates:

    .. math:: y_i = \sum_{j \in \mathrm{top}_m(s_i)} \sigma(s_{ij}) f_j(x_i), \qquad
        \mathrm{loss} = -\gamma H(\bar p),\quad \bar p = \tfrac1n \sum_i \mathrm{softmax}(s_i).

    In training an expert is hidden from a datapoint with probability δ, independently, and the others are not
    rescaled; if fewer than m remain, fewer are summed.

    **Objective:** the loss of its own, deterministic output (averaged over the dropout in training) minus γ times the
    entropy of the mean router. **Gradient:** through the gates and the entropy; exact but for the jumps of the
    selection, which it does not see. Biased for the router objective. **Cost** m experts per datapoint, O(nk) to
    select.

    Source: Csordás, Irie & Schmidhuber (2023), "Approximating two-layer feedforward networks for efficient
    Transformers". The authors limit no loads; a capacity here counts a datapoint's first choice before the
    second choice of anyone.

    :param num_selected: m, the experts per datapoint.
    :param entropy_weight: γ, in units of the loss per datapoint.
    :param expert_dropout: δ.
    :param capacity: the most datapoints of one batch that an expert processes, over all m choices; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.
    :raises ValueError: if an option is out of its range.

    >>> routing = SigmaMoE(num_selected=2)(torch.tensor([[0.0, 2.0, 1.0]]))
    >>> routing.assignment
    tensor([[1],
            [2]])
    """

    objective = "its own output's loss, minus the weighted entropy of the mean router"

    def __init__(
        self,
        *,
        num_selected: int = 2,
        entropy_weight: float = 1e-3,
        expert_dropout: float = 0.0,
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        check_positive_int("num_selected", num_selected)
        check_weight("entropy_weight", entropy_weight)
        if not 0 <= expert_dropout < 1:
            raise ValueError(f"expert_dropout must be a probability below 1, but is {expert_dropout!r}")
        self.num_selected = num_selected
        self.entropy_weight = entropy_weight
        self.expert_dropout = expert_dropout

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return logits.mT.gather(-2, choices).sigmoid(), None

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        """
        :raises ValueError: on a wrong dtype or shape, and on fewer experts than ``num_selected``.
        """
        logits, mask = self.prepare(logits, mask)
        capacity, slots = self.capacity_of(logits, mask)
        # The sigmoid is monotone, but saturates: the logits still tell large scores apart.
        scores = logits.detach()
        if self.training and self.expert_dropout:
            hidden = uniform_noise(scores.shape, scores.device, event_dim=2, dtype=torch.float32) < self.expert_dropout
            scores = scores.masked_fill(hidden, -torch.inf)
        choices = top_choices(scores, self.num_selected)
        visible = scores.mT.gather(-2, choices) > -torch.inf
        gate = logits.mT.gather(-2, choices).sigmoid()
        return SparseRouting(
            assign_choices(choices, visible, capacity, logits.shape[-1], mask),
            torch.where(visible, gate, 0.0),
            slots,
            -self.entropy_weight * mean_router_entropy(logits, mask),
        )


def mean_router_entropy(logits: Tensor, mask: Tensor | None) -> Tensor:
    """
    Entropy of the mean router :math:`\\bar p`, in nats, (*batch); 0 without datapoints.

    :param logits: (*batch, n, k).
    :param mask: bool (*batch, n), False for padding.
    """
    # In logs, because a rare expert's probability underflows; finite, because 0 * inf has no gradient.
    lowest = torch.finfo(logits.dtype).min / 4
    log_p = logits.log_softmax(-1).clamp(min=lowest)
    count = torch.full(logits.shape[:-2], logits.shape[-2], device=logits.device)
    if mask is not None:
        log_p = log_p.masked_fill(~mask.unsqueeze(-1), lowest)
        count = mask.sum(-1)
    log_mean = log_p.logsumexp(-2).clamp(min=lowest) - count.clamp(min=1).to(logits.dtype).log().unsqueeze(-1)
    return -(log_mean.exp() * log_mean).sum(-1)
