"""From records to tables: best settings, averages over the grid, paired differences, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from inference.intervals import bca_interval, share_difference_interval, share_interval
from inference.study.arms import all_arms
from inference.study.cache import Record
from inference.study.settings import Run

#: a seed is solved if its predictive is within this many nats per datapoint of the true process
SOLVED_WITHIN = 0.5
SETTING = ["learning_rate", "load_balancing"]
MEASURES = ["solved", "nll", "error"]
#: how an arm's settings are chosen
VIEWS = ("best setting", "average over the grid")


@dataclass(frozen=True)
class Claim:
    """``arm`` is better than ``other``; ``of`` says who claims it."""

    arm: str
    other: str
    of: str


CLAIMS = (
    Claim("skip", "gumbel-matching", "paper: skip is more effective than balanced sampling"),
    Claim("skip", "skip-unweighted", "paper: more robust than the biased twin"),
    Claim("gumbel-matching", "gumbel-matching-unweighted", "paper: more robust than the biased twin"),
    Claim("skip", "switch", "paper: more robust than biased alternatives"),
    Claim("gumbel-matching", "switch", "paper: more robust than biased alternatives"),
    Claim("skip", "independent", "what capacity costs"),
    Claim("dependent-rounding", "skip", "ours: less variance trains better"),
    Claim("dependent-rounding", "gumbel-matching", "ours: less variance trains better"),
    Claim("dependent-rounding", "rl-r", "ours: level with routing without capacity"),
    Claim("dependent-rounding", "switch", "ours: ahead of biased alternatives"),
    Claim("dependent-rounding", "sparsemixer-v1", "ours: ahead of biased alternatives"),
)


def seed_table(runs: Sequence[Run], records: Sequence[Record]) -> pd.DataFrame:
    """One row per run and seed: task, arm, setting, seed, held-out nll and error, solved (NaN without a truth)."""
    tables = []
    for run, record in zip(runs, records):
        nll = np.array(record.metrics["nll"])
        truth = np.array(record.metrics.get("truth", np.full(nll.shape, np.nan)))
        solved = np.where(np.isnan(truth), np.nan, nll <= truth + SOLVED_WITHIN)
        columns = {
            "task": run.label,
            "arm": run.arm,
            "learning_rate": run.learning_rate,
            "load_balancing": run.load_balancing,
            "seed": run.seed + np.arange(len(nll)),
            "solved": solved,
            "nll": nll,
            "error": record.metrics["error"],
        }
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def by_setting(seeds: pd.DataFrame) -> pd.DataFrame:
    """One row per task, arm and setting: means over seeds and the median NLL, with 95 % intervals."""
    rows = []
    for key, group in seeds.groupby(["task", "arm", *SETTING], sort=False):
        rows.append({**dict(zip(["task", "arm", *SETTING], key)), **_described(group.set_index("seed")[MEASURES])})
    return pd.DataFrame(rows)


def by_arm(seeds: pd.DataFrame) -> pd.DataFrame:
    """
    One row per task, arm and view: means over seeds with 95 % intervals, at the best setting and over the grid.

    The best setting has the least mean NLL. It is chosen on every other seed and measured on the rest, and the other
    way round, so that choosing among more settings looks no better than it is; the setting that is printed is the
    choice on all.
    """
    rows, known = [], all_arms()
    for (task, arm), group in seeds.groupby(["task", "arm"], sort=False):
        rate, weight = best_setting(group)
        for view in VIEWS:
            rows.append(
                {
                    "task": task,
                    "group": known[arm].group.value,
                    "arm": arm,
                    "objective": known[arm].objective,
                    "view": view,
                    "learning_rate": rate if view == VIEWS[0] else np.nan,
                    "load_balancing": weight if view == VIEWS[0] else np.nan,
                    **_described(per_seed(group, view)),
                }
            )
    return pd.DataFrame(rows)


def contrasts(seeds: pd.DataFrame) -> pd.DataFrame:
    """
    One row per task, claim and view: the difference ``arm`` minus ``minus``, paired over seeds, with 95 % intervals;
    claims on arms that did not run are left out.
    """
    rows = []
    for task, table in seeds.groupby("task", sort=False):
        groups = dict(iter(table.groupby("arm")))
        for claim in CLAIMS:
            if claim.arm not in groups or claim.other not in groups:
                continue
            for view in VIEWS:
                pair = (per_seed(groups[name], view) for name in (claim.arm, claim.other))
                row = {"task": task, "arm": claim.arm, "minus": claim.other, "view": view, **_difference(*pair)}
                verdicts = {f"{measure}_verdict": verdict(row, measure) for measure in MEASURES}
                rows.append(row | verdicts | {"claim": claim.of})
    return pd.DataFrame(rows)


def verdict(row: Mapping[str, Any], measure: str) -> str:
    """
    Whether a difference speaks for the claim that ``arm`` is better.

    :param row: of :func:`contrasts`, with the interval of the measure.
    :returns: yes or no where the interval lies on one side of 0, else open; nothing where the measure is missing.
    """
    low, high = row[f"{measure}_low"], row[f"{measure}_high"]
    if np.isnan(low):
        return ""
    # More seeds solved is better; less NLL and less error are.
    worst, best = (low, high) if measure == "solved" else (-high, -low)
    return "yes" if worst > 0 else "no" if best < 0 else "open"


def best_setting(group: pd.DataFrame) -> tuple[float, float]:
    """:returns: learning rate and load-balancing weight of least mean NLL, of the rows of an arm and task."""
    return group.groupby(SETTING).nll.mean().idxmin()


def per_seed(group: pd.DataFrame, view: str, measures: Sequence[str] = MEASURES) -> pd.DataFrame:
    """:returns: one row per seed with its measures, for the rows of an arm and task, in a view of :data:`VIEWS`."""
    measures = list(measures)
    if view == VIEWS[1]:
        return group.groupby("seed")[measures].mean()
    order = group.seed.rank(method="dense").astype(int)
    if order.max() == 1:
        halves = [(group, group)]
    else:
        even, odd = group[order % 2 == 0], group[order % 2 == 1]
        halves = [(even, odd), (odd, even)]
    parts = [_at(kept, best_setting(choosing)) for choosing, kept in halves]
    return pd.concat(parts).set_index("seed")[measures].sort_index()


def _at(group: pd.DataFrame, setting: tuple[float, float]) -> pd.DataFrame:
    rate, weight = setting
    return group[(group.learning_rate == rate) & (group.load_balancing == weight)]


def _described(values: pd.DataFrame) -> dict[str, float]:
    """
    Mean and interval of every measure over the rows, and of the median NLL: Wilson's of the share solved, BCa else.
    """
    ends = {"solved": share_interval(values.solved), **{name: bca_interval(values[name]) for name in ("nll", "error")}}
    return _row(values, ends)


def _difference(first: pd.DataFrame, second: pd.DataFrame) -> dict[str, float]:
    """The same of ``first`` minus ``second``, over the seeds that both have."""
    first, second = first.align(second, join="inner")
    values = first - second
    ends = {"solved": share_difference_interval(first.solved, second.solved)}
    return _row(values, ends | {name: bca_interval(values[name]) for name in ("nll", "error")})


def _row(values: pd.DataFrame, ends: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    row: dict[str, float] = {"seeds": len(values)}
    for name, (low, high) in ends.items():
        row |= {name: values[name].mean(), f"{name}_low": low, f"{name}_high": high}
    low, high = bca_interval(values.nll, np.median)
    return row | {"nll_median": values.nll.median(), "nll_median_low": low, "nll_median_high": high}
