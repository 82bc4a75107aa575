"""S-BASE: the best expert of an entropy-regularised balanced plan."""

import torch
from torch import Tensor

from prob_moe._transforms import refuse_tracing
from prob_moe.experts.validation import check_positive_int
from prob_moe.routers.base import Router, SparseRouting, top_choices


def sinkhorn_log_plan(
    logits: Tensor, *, mask: Tensor | None = None, max_iterations: int = 100, tolerance: float = 1e-4
) -> Tensor:
    r"""
    Logarithm of the entropy-regularised balanced plan, which is the exponential of the logits with rows and columns
    scaled:

    .. math:: \max_P \sum_{ij} P_{ij} s_{ij} - \sum_{ij} P_{ij} \log P_{ij}
        \quad\text{where}\quad \sum_j P_{ij} = 1,\ \sum_i P_{ij} = n / k,

    by Sinkhorn's iterations on the logarithms of the scalings, in float64: nothing overflows, whatever the logits.
    Every iteration costs O(nk). Datapoints sum to 1 exactly, experts to n/k within ``tolerance`` unless the cap ends
    the iterations first, as for logits of standard deviation 30 (to about 1 % then).

    :param logits: s, float (*batch, n, k); -inf forbids a pair.
    :param mask: bool (*batch, n), False for padding, which has no mass.
    :param max_iterations: the cap.
    :param tolerance: largest relative error of an expert's sum at which to stop earlier; looking at it waits for the
        device.
    :returns: log P, float64 (*batch, n, k), -inf for padding. No gradient flows through it.
    """
    refuse_tracing("sinkhorn_log_plan")
    scores = logits.detach().double()
    n, k = scores.shape[-2:]
    absent = None if mask is None else ~mask.unsqueeze(-1)
    count = scores.new_full((1, 1), n) if mask is None else mask.sum(-1)[..., None, None].to(scores)
    log_share = (count / k).log()
    prices = torch.zeros_like(log_share).expand(*scores.shape[:-2], 1, k)
    for _ in range(max_iterations):
        log_plan = (scores - prices).log_softmax(-1)
        if absent is not None:
            log_plan = log_plan.masked_fill(absent, -torch.inf)
        log_sums = log_plan.logsumexp(-2, keepdim=True)
        # An expert that is forbidden to all, or a batch of padding only, has nothing to scale.
        excess = torch.where(log_sums == -torch.inf, 0.0, log_sums - log_share)
        if bool((excess.expm1().abs() <= tolerance).all()):
            break
        prices = prices + excess
    return log_plan


class SinkhornBASE(Router):
    r"""
    S-BASE: every datapoint goes to its best expert in the balanced plan P of the logits, see :func:`sinkhorn_log_plan`:

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
