"""
Confidence intervals: Wilson's for shares, Newcombe's for paired differences of shares, BCa for means and medians,
Student's for means of few draws at high levels.
"""

import math
import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]

NUM_RESAMPLES = 2000


def wilson_interval(successes: float, trials: int, *, level: float = 0.95) -> Interval:
    """
    The score interval of a share. It lies in [0, 1] and has a width even where all trials, or none, succeeded.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    :param successes: how many of the trials; a fraction where trials succeed in part, and then the interval is
        conservative, since no values in [0, 1] vary more than those that are 0 or 1.
    :param level: coverage, in (0, 1).
    :raises ValueError: without a trial, or with successes outside [0, trials].

    >>> low, high = wilson_interval(0, 64)
    >>> low, round(high, 4)
    (0.0, 0.0566)
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in [0, trials] of at least one trial, got {successes!r} of {trials!r}")
    z = _normal_quantile(level)
    share = successes / trials
    middle = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    # The ends are exact where rounding would miss them.
    return (0.0 if successes == 0 else middle - half), (1.0 if successes == trials else middle + half)


def newcombe_interval(first: Any, second: Any, *, level: float = 0.95) -> Interval:
    """
    An interval of the difference of two shares over the same trials, from Wilson's intervals of both and their
    correlation. It has a width even where the trials agree throughout.

    Source: Newcombe (1998), "Improved confidence intervals for the difference between binomial proportions based on
    paired data", method 10.

    :param first: 0 or 1 by trial, (n,); the share of ``second`` is subtracted from its own.
    :param second: (n,).
    :raises ValueError: on other values, or none.

    >>> low, high = newcombe_interval(np.zeros(64), np.zeros(64))
    >>> round(low, 4), round(high, 4)
    (-0.0566, 0.0566)
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or not len(a) or not (_zero_or_one(a) and _zero_or_one(b)):
        raise ValueError(f"first and second must be 0 or 1 for every trial, got shapes {a.shape} and {b.shape}")
    n = len(a)
    (low_a, high_a), (low_b, high_b) = (wilson_interval(float(x.sum()), n, level=level) for x in (a, b))
    share_a, share_b = a.mean(), b.mean()
    both, only_a, only_b = float((a * b).sum()), float((a * (1 - b)).sum()), float(((1 - a) * b).sum())
    none = n - both - only_a - only_b
    scale = math.sqrt((both + only_a) * (only_b + none) * (both + only_b) * (only_a + none))
    product = both * none - only_a * only_b
    # The correction for continuity keeps agreement throughout from meaning certainty.
    correlation = (max(product - n / 2, 0.0) if product > 0 else product) / scale if scale > 0 else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(x * x - 2 * correlation * x * y + y * y, 0.0))

    difference = float(share_a - share_b)
    return (
        difference - reach(float(share_a) - low_a, high_b - float(share_b)),
        difference + reach(high_a - float(share_a), float(share_b) - low_b),
    )


def bca_interval(
    values: Any,
    statistic: Callable[..., Any] = np.mean,
    *,
    level: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """
    The bias-corrected and accelerated bootstrap interval. Efron (1987), "Better bootstrap confidence intervals";
    computed by ``scipy.stats.bootstrap``.

    :param values: independent draws, (n,): here one number per seed.
    :param statistic: as :func:`numpy.mean` or :func:`numpy.median`, with the argument ``axis``.
    :param level: coverage, in (0, 1).
    :returns: lower and upper end. Draws that are all equal have no spread to learn from, and the interval is the point;
        one draw alone has none, NaN; where the correction is undefined (a median that no single draw moves), the ends
        are those of the percentile bootstrap.
    :raises ValueError: without a draw.

    >>> low, high = bca_interval(np.arange(20.0))
    >>> low < 9.5 < high
    True
    """
    # Slow to import; --help need not wait for it.
    from scipy import stats

    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("values must hold at least one draw, got none")
    _normal_quantile(level)
    if len(values) == 1 or np.isnan(values).any():
        return math.nan, math.nan
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    with warnings.catch_warnings():
        # What it cannot correct is NaN, which is looked for below.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (values,),
            statistic,
            confidence_level=level,
            n_resamples=num_resamples,
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
    low, high = map(float, found.confidence_interval)
    if math.isnan(low) or math.isnan(high):
        low, high = map(float, np.quantile(found.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2]))
    return low, high


def student_interval(values: Any, *, level: float = 0.95) -> Interval:
    """
    Student's interval of a mean, exact for normal draws. At levels near 1, as joint ones are, a bootstrap of a few
    draws has no tails to speak of; this one has.

    :param values: independent draws, (n,).
    :param level: coverage, in (0, 1).
    :returns: lower and upper end; NaN for one draw alone; the point for draws that are all equal.
    :raises ValueError: without a draw.

    >>> student_interval([1.0, 2.0, 3.0])
    (-0.4841..., 4.4841...)
    """
    # Slow to import; --help need not wait for it.
    from scipy import stats

    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("values must hold at least one draw, got none")
    _normal_quantile(level)
    if len(values) == 1 or np.isnan(values).any():
        return math.nan, math.nan
    middle = float(values.mean())
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return middle - half, middle + half


def share_interval(values: Any, *, level: float = 0.95) -> Interval:
    """
    The interval of a mean of shares: Wilson's where every value is 0 or 1, or where all are equal; else BCa.

    :param values: in [0, 1], (n,); with NaN in it, the interval is NaN.

    >>> share_interval(np.ones(64))[1]
    1.0
    """
    values = np.asarray(values, dtype=float)
    if np.isnan(values).any():
        return math.nan, math.nan
    if _zero_or_one(values) or np.ptp(values) == 0:
        return wilson_interval(float(values.sum()), len(values), level=level)
    return bca_interval(values, level=level)


def share_difference_interval(first: Any, second: Any, *, level: float = 0.95) -> Interval:
    """
    The interval of the mean difference of shares that are paired: Newcombe's where every value is 0 or 1; else BCa.
    Where the difference is the same for all, at most the share of pairs that Wilson's interval leaves may be off by 1.

    :param first: in [0, 1], (n,).
    :param second: in [0, 1], (n,); subtracted.

    >>> low, high = share_difference_interval(np.full(64, 0.5), np.full(64, 0.5))
    >>> round(low, 4), round(high, 4)
    (-0.0566, 0.0566)
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    difference = first - second
    if np.isnan(difference).any():
        return math.nan, math.nan
    if _zero_or_one(first) and _zero_or_one(second):
        return newcombe_interval(first, second, level=level)
    if np.ptp(difference) == 0:
        middle, (_, unseen) = float(difference[0]), wilson_interval(0, len(difference), level=level)
        return max(middle - unseen, -1.0), min(middle + unseen, 1.0)
    return bca_interval(difference, level=level)


def _zero_or_one(values: Array) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _normal_quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must lie inside (0, 1), got {level!r}")
    return NormalDist().inv_cdf((1 + level) / 2)
