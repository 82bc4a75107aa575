"""From records to tables: intervals, best settings, averages over the grid, paired differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from inference.study.arms import ARMS
from inference.study.cache import Record
from inference.study.settings import Run

Array = NDArray[np.float64]

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
    Claim("skip", "Gumbel-Matching", "paper: skip is more effective than balanced sampling"),
    Claim("skip", "skip, unweighted", "paper: more robust than the biased twin"),
    Claim("Gumbel-Matching", "Gumbel-Matching, unweighted", "paper: more robust than the biased twin"),
    Claim("skip", "Switch", "paper: more robust than biased alternatives"),
    Claim("Gumbel-Matching", "Switch", "paper: more robust than biased alternatives"),
    Claim("skip", "independent", "what capacity costs"),
    Claim("dependent rounding", "skip", "ours: less variance trains better"),
    Claim("dependent rounding", "Gumbel-Matching", "ours: less variance trains better"),
    Claim("dependent rounding", "RL-R", "ours: level with routing without capacity"),
    Claim("dependent rounding", "Switch", "ours: ahead of biased alternatives"),
    Claim("dependent rounding", "SparseMixer v1", "ours: ahead of biased alternatives"),
)


def bootstrap_interval(
    values: Array,
    statistic: Callable[[Array], Array] = lambda resampled: resampled.mean(0),
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Array, Array]:
    """
    Percentile bootstrap interval over the first dimension. Efron & Tibshirani (1993), "An Introduction to the
    Bootstrap", section 13.3.

    :param values: (n, *rest): n draws of something independent, here seeds.
    :param statistic: from resampled values (n, num_resamples, *rest) to (num_resamples, *rest).
    :param level: coverage, in (0, 1).
    :returns: lower and upper end, (*rest) each.

    >>> bootstrap_interval(np.ones(10))
    (np.float64(1.0), np.float64(1.0))
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie inside (0, 1), got {level!r}")
    if not len(values):
        raise ValueError("values must hold at least one draw, got none")
    index = np.random.default_rng(seed).integers(len(values), size=(len(values), num_resamples))
    low, high = np.quantile(statistic(np.asarray(values)[index]), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def seed_table(runs: Sequence[Run], records: Sequence[Record]) -> pd.DataFrame:
    """A row a run and seed: task, arm, setting, seed, nll and error on held-out data, solved (NaN without a truth)."""
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
    """A row a task, arm and setting: means over seeds with 95 % bootstrap intervals, and the median NLL."""
    rows = []
    for key, group in seeds.groupby(["task", "arm", *SETTING], sort=False):
        rows.append({**dict(zip(["task", "arm", *SETTING], key)), **_described(group.set_index("seed")[MEASURES])})
    return pd.DataFrame(rows)


def by_arm(seeds: pd.DataFrame) -> pd.DataFrame:
    """
    A row a task, arm and view: means over seeds with 95 % bootstrap intervals, at the best setting and over the grid.

    The best setting has the least mean NLL. It is chosen on every other seed and measured on the rest, and the other
    way round, so that choosing among more settings looks no better than it is; the setting that is printed is the
    choice on all.
    """
    rows = []
    for (task, arm), group in seeds.groupby(["task", "arm"], sort=False):
        rate, weight = best_setting(group)
        for view in VIEWS:
            rows.append(
                {
                    "task": task,
                    "group": ARMS[arm].group.value,
                    "arm": arm,
                    "objective": ARMS[arm].objective,
                    "view": view,
                    "learning_rate": rate if view == VIEWS[0] else np.nan,
                    "load_balancing": weight if view == VIEWS[0] else np.nan,
                    **_described(per_seed(group, view)),
                }
            )
    return pd.DataFrame(rows)


def contrasts(seeds: pd.DataFrame) -> pd.DataFrame:
    """
    A row a task, claim and view: the difference ``arm`` minus ``minus``, paired over seeds, with 95 % bootstrap
    intervals; claims on arms that did not run are left out.
    """
    rows = []
    for task, table in seeds.groupby("task", sort=False):
        groups = dict(iter(table.groupby("arm")))
        for claim in CLAIMS:
            if claim.arm not in groups or claim.other not in groups:
                continue
            for view in VIEWS:
                difference = (per_seed(groups[claim.arm], view) - per_seed(groups[claim.other], view)).dropna(how="all")
                row = {"task": task, "arm": claim.arm, "minus": claim.other, "view": view, **_described(difference)}
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


def per_seed(group: pd.DataFrame, view: str) -> pd.DataFrame:
    """:returns: a row a seed with its measures, for the rows of an arm and task, in a view of :data:`VIEWS`."""
    if view == VIEWS[1]:
        return group.groupby("seed")[MEASURES].mean()
    order = group.seed.rank(method="dense").astype(int)
    if order.max() == 1:
        halves = [(group, group)]
    else:
        even, odd = group[order % 2 == 0], group[order % 2 == 1]
        halves = [(even, odd), (odd, even)]
    parts = [_at(kept, best_setting(choosing)) for choosing, kept in halves]
    return pd.concat(parts).set_index("seed")[MEASURES].sort_index()


def _at(group: pd.DataFrame, setting: tuple[float, float]) -> pd.DataFrame:
    rate, weight = setting
    return group[(group.learning_rate == rate) & (group.load_balancing == weight)]


def _described(values: pd.DataFrame) -> dict[str, float]:
    """Mean and interval of every measure over the rows, and the median NLL; one seed alone has no interval."""
    low, high = bootstrap_interval(values.to_numpy(dtype=float) if len(values) > 1 else np.full((2, 3), np.nan))
    described: dict[str, float] = {"seeds": len(values)}
    for name, mean, lower, upper in zip(values, values.mean(), low, high):
        described |= {name: mean, f"{name}_low": lower, f"{name}_high": upper}
    return described | {"nll_median": values.nll.median()}
