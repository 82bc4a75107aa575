"""Entropies of routers and of the numbers of datapoints that choose an expert, in closed form."""

import torch
from torch import Tensor

from prob_moe.numerics.conditional_poisson import log_elementary_symmetric, log_inclusion_probabilities


def choice_entropy(logits: Tensor, mask: Tensor | None, num_selected: int | None = None) -> Tensor:
    """
    Entropy of all choices z_i ~ softmax(φ_i) together, or of conditional Poisson sets of m experts:
    log e_m(p_i) - Σ_j P(j in S_i) log p_ij.

    :param logits: (*batch, n, k), -inf where forbidden.
    :param mask: bool (*batch, n), False for padding, or None.
    :returns: nats, float64 (*batch).
    """
    log_p = logits.log_softmax(-1, dtype=torch.float64)
    # p log p is 0 at p = 0, and so is its gradient along whatever keeps an expert forbidden.
    surprise = -_chosen(log_p, num_selected) * log_p.masked_fill(log_p == -torch.inf, 0.0)
    entropy = surprise.sum(-1)
    if num_selected is not None:
        entropy = entropy + log_elementary_symmetric(log_p, num_selected)
    if mask is not None:
        entropy = entropy.masked_fill(~mask, 0.0)
    return entropy.sum(-1)


def _chosen(log_p: Tensor, num_selected: int | None) -> Tensor:
    """The probability of every datapoint to choose every expert, (*batch, n, k)."""
    return log_p.exp() if num_selected is None else log_inclusion_probabilities(log_p, num_selected).exp()


def count_probabilities(probs: Tensor) -> Tensor:
    """
    The law of the number of successes of n independent trials, for every column (the Poisson-binomial distribution).

    It is the product of the polynomials 1 - p_i + p_i t, multiplied in pairs, pairs of pairs, and so on, through
    Fourier transforms: O(n log² n) a column, off by roundings of 1, and differentiable.

    :param probs: probability of success p, (*batch, n, k).
    :returns: probability of 0 to n successes, float64 (*batch, k, n + 1).

    >>> count_probabilities(torch.tensor([[0.5], [0.5]]))
    tensor([[0.2500, 0.5000, 0.2500]], dtype=torch.float64)
    """
    p = probs.double().mT
    n = p.shape[-1]
    factors = torch.stack([1 - p, p], -1)
    if n == 0:
        return factors.new_ones(*factors.shape[:-2], 1)
    while factors.shape[-2] > 1:
        if factors.shape[-2] % 2:
            one = torch.zeros_like(factors[..., :1, :])
            one[..., 0] = 1.0
            factors = torch.cat([factors, one], -2)
        length = 2 * factors.shape[-1] - 1
        spectrum = torch.fft.rfft(factors, length)
        factors = torch.fft.irfft(spectrum[..., 0::2, :] * spectrum[..., 1::2, :], length)
    return factors.squeeze(-2)[..., : n + 1]


def skip_entropy(logits: Tensor, capacity: Tensor, mask: Tensor | None, num_selected: int | None = None) -> Tensor:
    """
    Entropy of independent choices of which every expert keeps a uniformly random c, at most: the choices' own, and
    E[log C(n_j, min(c, n_j))] for every expert, where n_j datapoints chose it.

    :param capacity: c, long (*batch).
    :returns: nats, float64 (*batch).
    """
    p = _chosen(logits.log_softmax(-1, dtype=torch.float64), num_selected)
    if mask is not None:
        p = p.masked_fill(~mask.unsqueeze(-1), 0.0)
    chosen = torch.arange(logits.shape[-2] + 1, dtype=torch.float64, device=logits.device)
    kept = torch.minimum(chosen, capacity.unsqueeze(-1).double())
    log_ways = torch.lgamma(chosen + 1) - torch.lgamma(kept + 1) - torch.lgamma(chosen - kept + 1)
    who_is_kept = (count_probabilities(p) * log_ways.unsqueeze(-2)).sum((-2, -1))
    return choice_entropy(logits, mask, num_selected) + who_is_kept
