"""Intervals, choices and differences against what they should be."""

import numpy as np
import pandas as pd
import pytest

from inference.study.cache import Record
from inference.study.settings import DigitsRun, ToyRun
from inference.study.statistics import (
    CLAIMS,
    VIEWS,
    best_setting,
    bootstrap_interval,
    by_arm,
    by_setting,
    contrasts,
    per_seed,
    seed_table,
    verdict,
)

BEST, AVERAGE = VIEWS


def table(nll: np.ndarray, arm: str = "skip", task: str = "lines") -> pd.DataFrame:
    """:param nll: (settings, seeds)."""
    return pd.DataFrame(
        {
            "task": task,
            "arm": arm,
            "learning_rate": np.repeat(np.arange(1.0, len(nll) + 1), nll.shape[1]),
            "load_balancing": 0.0,
            "seed": np.tile(np.arange(nll.shape[1]), len(nll)),
            "solved": (nll < 0).astype(float).ravel(),
            "nll": nll.ravel(),
            "error": nll.ravel() + 1,
        }
    )


def test_interval_of_a_mean_is_that_of_the_closed_form() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 3))
    low, high = bootstrap_interval(values, num_resamples=2000)
    error = values.std(0) / 1000**0.5
    # The standard error of a simulated 2.5 % quantile of a normal is sqrt(0.025 * 0.975 / 2000) / density = 0.06.
    for end, z in ((low, -1.96), (high, 1.96)):
        assert (np.abs((end - values.mean(0)) / error - z) < 5 * 0.06).all()


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    repeats, level = 400, 0.8
    covered = 0
    for seed in range(repeats):
        low, high = bootstrap_interval(rng.random(100) < 0.3, level=level, num_resamples=500, seed=seed)
        covered += int(low <= 0.3 <= high)
    assert abs(covered / repeats - level) < 5 * (level * (1 - level) / repeats) ** 0.5


def test_interval_is_checked() -> None:
    with pytest.raises(ValueError, match=r"level must lie inside \(0, 1\), got 1.0"):
        bootstrap_interval(np.ones(3), level=1.0)
    with pytest.raises(ValueError, match="at least one draw"):
        bootstrap_interval(np.ones(0))


def test_solved_is_near_the_true_process() -> None:
    runs = [ToyRun("skip", 0.1, 0.0, num_seeds=3), DigitsRun("skip", 0.1, 0.0, seed=7)]
    records = [
        Record({}, {"nll": [0.4, 0.6, -0.1], "error": [1.0, 2.0, 3.0], "truth": [0.0, 0.0, -0.7]}, 0.0),
        Record({}, {"nll": [0.2], "error": [0.1]}, 0.0),
    ]
    seeds = seed_table(runs, records)
    assert list(seeds.solved[:3]) == [1.0, 0.0, 0.0]
    assert np.isnan(seeds.solved[3])
    assert list(seeds.seed) == [0, 1, 2, 7]
    assert list(seeds.task) == ["lines, break at 0.5"] * 3 + ["digits"]


def test_the_best_setting_is_measured_on_seeds_that_did_not_choose_it() -> None:
    """Among many settings that are all alike, the least mean looks better than it is; the cross-fitted one does not."""
    rng = np.random.default_rng(0)
    honest, naive = [], []
    for _ in range(200):
        noise = table(rng.normal(size=(12, 10)))
        measured = per_seed(noise, BEST)
        assert list(measured.index) == list(range(10))
        honest.append(measured.nll.mean())
        naive.append(noise.groupby("learning_rate").nll.mean().min())
    error = np.std(honest) / 200**0.5
    assert abs(np.mean(honest)) < 5 * error
    assert np.mean(naive) < -5 * error


def test_a_clear_best_setting_is_chosen_and_the_average_is_over_the_grid() -> None:
    nll = np.array([[3.0, 5.0, 4.0], [-1.0, -2.0, -3.0]])
    rows = table(nll)
    assert best_setting(rows) == (2.0, 0.0)
    assert list(per_seed(rows, BEST).nll) == [-1.0, -2.0, -3.0]
    assert list(per_seed(rows, AVERAGE).nll) == [1.0, 1.5, 0.5]
    best, average = (by_arm(rows).set_index("view").loc[view] for view in VIEWS)
    assert (best.learning_rate, best.solved, best.nll, best.seeds) == (2.0, 1.0, -2.0, 3)
    assert (average.solved, average.nll) == (0.5, 1.0)
    assert list(by_setting(rows).nll) == [4.0, -2.0]


def test_one_seed_chooses_for_itself() -> None:
    alone = table(np.array([[3.0], [1.0]]))
    assert list(per_seed(alone, BEST).nll) == [1.0]
    assert by_arm(alone)[["nll_low", "nll_high"]].isna().all(axis=None)


def test_contrasts_are_paired_over_seeds() -> None:
    """The same spread over seeds in both arms cancels."""
    spread = np.arange(5) * 100.0
    seeds = pd.concat(
        [table(spread[None] + shift, claim) for shift, claim in ((1.0, "skip"), (3.0, "Gumbel-Matching"))]
    )
    found = contrasts(seeds)
    assert list(zip(found.arm, found.minus)) == [("skip", "Gumbel-Matching")] * 2
    assert list(found["view"]) == list(VIEWS)
    assert (found[["nll", "nll_low", "nll_high"]] == -2.0).all(axis=None)

    assert (found.nll_verdict == "yes").all()


@pytest.mark.parametrize(
    ("low", "high", "measure", "expected"),
    [
        (0.1, 0.2, "solved", "yes"),
        (-0.2, -0.1, "solved", "no"),
        (0.1, 0.2, "nll", "no"),
        (-0.2, -0.1, "error", "yes"),
        (-0.1, 0.1, "nll", "open"),
        (np.nan, np.nan, "solved", ""),
    ],
)
def test_verdict_asks_on_which_side_of_zero_the_interval_lies(
    low: float, high: float, measure: str, expected: str
) -> None:
    assert verdict({f"{measure}_low": low, f"{measure}_high": high}, measure) == expected


def test_claims_are_about_arms_that_exist() -> None:
    from inference.study.arms import ARMS

    assert {claim.arm for claim in CLAIMS} | {claim.other for claim in CLAIMS} <= set(ARMS)
