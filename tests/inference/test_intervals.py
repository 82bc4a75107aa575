"""Intervals against published numbers, scipy, and the coverage that they promise."""

import math

import numpy as np
import pytest
from scipy import stats

from inference.intervals import (
    bca_interval,
    newcombe_interval,
    share_difference_interval,
    share_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("successes", "trials"), [(0, 64), (64, 64), (1, 3), (29, 100), (81, 263)])
def test_wilson_is_that_of_scipy(successes: int, trials: int) -> None:
    peer = stats.binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson_interval(successes, trials) == pytest.approx((peer.low, peer.high), abs=1e-12)


def test_newcombe_is_that_of_the_published_example() -> None:
    """Newcombe (1998), Stat. Med. 17, table III, method 10: 36 pairs of two successes, 12 and 2 of one, 0 of none."""
    pairs = [(1, 1)] * 36 + [(1, 0)] * 12 + [(0, 1)] * 2
    low, high = newcombe_interval(*np.array(pairs).T)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pairs_that_agree_throughout_still_have_an_interval(share: float) -> None:
    values = np.arange(64) < 64 * share
    low, high = share_difference_interval(values, values)
    assert low < -0.01 < 0.01 < high
    low, high = share_difference_interval(np.full(64, 0.25), np.full(64, 0.75))
    assert low < -0.51 < -0.49 < high


def test_shares_in_part_are_bootstrapped_unless_they_are_all_equal() -> None:
    values = np.random.default_rng(0).random(50)
    assert share_interval(values) == bca_interval(values)
    assert share_interval(np.full(50, 0.5)) == wilson_interval(25, 50)


def covered(truth: float, intervals: list[tuple[float, float]]) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def percentile(values: np.ndarray, seed: int) -> tuple[float, float]:
    index = np.random.default_rng(seed).integers(len(values), size=(500, len(values)))
    low, high = np.quantile(values[index].mean(1), [0.025, 0.975])
    return float(low), float(high)


def test_wilson_covers_a_rare_share_where_the_percentile_bootstrap_does_not() -> None:
    """64 trials at 2 %: the percentile bootstrap misses the 27 % of samples without a success, [0, 0]."""
    rng = np.random.default_rng(0)
    samples = rng.random((400, 64)) < 0.02
    error = (0.95 * 0.05 / 400) ** 0.5
    assert covered(0.02, [share_interval(sample) for sample in samples]) > 0.95 - 5 * error
    biased = [percentile(sample.astype(float), seed) for seed, sample in enumerate(samples)]
    assert covered(0.02, biased) < 0.95 - 5 * error


@pytest.mark.parametrize(("statistic", "truth"), [(np.mean, 1.0), (np.median, math.log(2))])
def test_bca_covers_mean_and_median_of_a_skewed_law(statistic: object, truth: float) -> None:
    samples = np.random.default_rng(0).exponential(size=(200, 100))
    intervals = [bca_interval(sample, statistic, num_resamples=300, seed=seed) for seed, sample in enumerate(samples)]
    # Its level is 95 % up to O(1/n), here some per cent.
    assert abs(covered(truth, intervals) - 0.95) < 0.02 + 5 * (0.95 * 0.05 / 200) ** 0.5


def test_samples_without_spread() -> None:
    assert bca_interval(np.full(5, 2.5)) == (2.5, 2.5)
    # No single draw moves the median.
    low, high = bca_interval(np.array([1.0, 1, 1, 1, 1, 1, 9]), np.median)
    assert low == 1.0
    assert high in (1.0, 9.0)
    assert all(math.isnan(end) for end in bca_interval(np.ones(1)))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"level must lie inside \(0, 1\), got 1.0"):
        bca_interval(np.ones(3), level=1.0)
    with pytest.raises(ValueError, match="at least one draw"):
        bca_interval(np.ones(0))
    with pytest.raises(ValueError, match="successes must lie in"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="0 or 1 for every trial"):
        newcombe_interval(np.full(3, 0.5), np.ones(3))
