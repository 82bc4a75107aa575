"""Quantiles of a mixture, between those of its experts."""

from typing import Any

import numpy as np

from prob_moe.sklearn.table import Floats


def mixture_quantile(law: Any, probability: float, p: Floats, *, discrete: bool) -> Floats:
    """
    The least y whose probability of not being exceeded is at least the given one, by bisection.

    :param law: of every expert for every row, a distribution of ``scipy.stats`` of shape (k, n).
    :param p: probabilities of the experts, (k, n).
    :param discrete: whether y is a whole number.
    :returns: (n,).
    """
    each = np.broadcast_to(law.ppf(probability), p.shape)
    # An expert without any probability must not widen the bracket.
    low = np.where(p > 0, each, np.inf).min(0)
    high = np.where(p > 0, each, -np.inf).max(0)
    for _ in range(2000):
        middle = np.floor(low + (high - low) / 2) if discrete else low + (high - low) / 2
        enough = (p * law.cdf(middle)).sum(0) >= probability
        new_low, new_high = np.where(enough, low, middle), np.where(enough, middle, high)
        if np.array_equal(new_low, low) and np.array_equal(new_high, high):
            break
        low, high = new_low, new_high
    if discrete:
        return np.where((p * law.cdf(low)).sum(0) >= probability, low, high)
    return high
