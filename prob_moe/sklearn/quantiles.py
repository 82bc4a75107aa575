"""Quantiles of a mixture, between those of its experts."""

import torch
from torch import Tensor

from prob_moe.sklearn.families import Family


def mixture_quantile(
    family: Family, probability: float, log_p: Tensor, predictors: Tensor, dispersions: Tensor
) -> Tensor:
    """
    The least y whose probability of not being exceeded is at least the given one, by bisection.

    :param log_p: log-probabilities of the experts, (k, n).
    :param predictors: (m, k, n).
    :param dispersions: (d, k, 1).
    :returns: (n,).
    """
    each = family.quantile(probability, predictors, dispersions)
    # An expert without any probability must not widen the bracket; the mixture's quantile lies between the others'.
    possible = log_p > -745
    low = each.masked_fill(~possible, torch.inf).amin(0)
    high = each.masked_fill(~possible, -torch.inf).amax(0)
    p = log_p.exp()
    for _ in range(200):
        middle = (low + high) / 2 if not family.discrete else ((low + high) / 2).floor()
        enough = (p * family.cdf(middle, predictors, dispersions)).sum(0) >= probability
        new_low, new_high = torch.where(enough, low, middle), torch.where(enough, middle, high)
        if torch.equal(new_low, low) and torch.equal(new_high, high):
            break
        low, high = new_low, new_high
    if family.discrete:
        reached = (p * family.cdf(low, predictors, dispersions)).sum(0) >= probability
        return torch.where(reached, low, high)
    return high
