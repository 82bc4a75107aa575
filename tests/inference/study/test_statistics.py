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
        [table(spread[None] + shift, claim) for shift, claim in ((1.0, "skip"), (3.0, "gumbel-matching"))]
    )
    found = contrasts(seeds)
    assert list(zip(found.arm, found.minus)) == [("skip", "gumbel-matching")] * 2
    assert list(found["view"]) == list(VIEWS)
    assert (found[["nll", "nll_low", "nll_high"]] == -2.0).all(axis=None)
    assert (found.nll_verdict == "yes").all()


def test_a_share_that_is_0_or_1_and_a_difference_that_is_0_have_intervals_with_a_width() -> None:
    """Neither 10 of 10, nor none of 10, nor agreement of 10 pairs is certainty."""
    solved, unsolved = table(np.full((1, 10), -1.0)), table(np.full((1, 10), 1.0))
    (_, best), (_, worst) = (next(by_arm(rows).iterrows()) for rows in (solved, unsolved))
    assert (best.solved, best.solved_high) == (1.0, 1.0)
    assert (worst.solved, worst.solved_low) == (0.0, 0.0)
    assert best.solved_low == pytest.approx(0.7225, abs=1e-4)  # 1 / (1 + z² / 10)
    assert worst.solved_high == pytest.approx(0.2775, abs=1e-4)
    assert by_setting(solved).solved_low[0] == best.solved_low
    same = contrasts(pd.concat([solved, solved.assign(arm="gumbel-matching")])).iloc[0]
    assert same.solved == 0
    assert same.solved_low < -0.05 < 0.05 < same.solved_high
    assert same.solved_verdict == "open"


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
    from inference.study.arms import all_arms

    assert {claim.arm for claim in CLAIMS} | {claim.other for claim in CLAIMS} <= set(all_arms())
