"""Entropy-regularised balanced plans."""

import torch
from torch import Tensor

from prob_moe._transforms import refuse_tracing


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
        done = (excess.expm1().abs() <= tolerance).all(-1, keepdim=True)
        if bool(done.all()):
            break
        # A batch element's plan does not depend on how long others take.
        prices = torch.where(done, prices, prices + excess)
    return log_plan
