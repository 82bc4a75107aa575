"""A metric of several runs, and how the first differs from the others, seed by seed."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
import pandas as pd

from inference.intervals import bca_interval
from inference.runs.run_reader import Run, read_run


class Part(StrEnum):
    """Of the data that a fit has not trained on."""

    VALIDATION = "validation"
    TEST = "test"


def seed_metrics(run: Run, part: Part) -> pd.DataFrame:
    """
    What a run reached, as its tables have it.

    :returns: one row per seed that is done; on the validation part, metrics after the last epoch.
    :raises ValueError: if something of it is damaged, or no seed is done.
    """
    path = run.folder.path
    if run.problems:
        raise ValueError("; ".join(run.problems))
    table = run.test if part is Part.TEST else _after_last_epoch(run)
    if table is None or table.empty:
        raise ValueError(f"no seed of {path} is done: go on with python -m inference fit --out {path} --resume")
    return table


def _after_last_epoch(run: Run) -> pd.DataFrame:
    if run.epochs.empty:
        return run.epochs
    return run.epochs[run.epochs.epoch == run.config.num_epochs].set_index("seed")


def compare_runs(paths: Sequence[Path], metric: str | None, part: Part) -> pd.DataFrame:
    """
    :param paths: folders of runs of one task.
    :param metric: None for the task's first.
    :returns: one row per run: seeds and mean of the metric with its BCa interval (95 %); then, but for the first run,
        the same of the first minus this one over the seeds that both have.
    :raises ValueError: on a run that cannot be read, another task, a metric that is not there, or no seed in common.
    """
    runs = {path: read_run(path) for path in paths}
    if len(runs) < 2:
        raise ValueError(f"give the folders of two runs or more, got {', '.join(map(str, paths))}")
    if len({run.config.task for run in runs.values()}) > 1:
        told = ", ".join(f"{path} ({run.config.task})" for path, run in runs.items())
        raise ValueError(f"runs must be of one task, got {told}")
    tables = {path: seed_metrics(run, part) for path, run in runs.items()}
    metrics = [name for name in tables[paths[0]] if name not in ("epoch", "loss", "load", "drops")]
    metric = metrics[0] if metric is None else metric
    rows = []
    first: pd.Series | None = None
    for path, table in tables.items():
        if metric not in table:
            raise ValueError(f"{path} has no metric {metric!r}; known are {', '.join(metrics)}")
        values = table[metric].astype(float)
        row = {"run": str(path), "part": str(part), "metric": metric, **_described(values, "")}
        if first is None:
            first = values
        else:
            difference = (first - values).dropna()
            if difference.empty:
                raise ValueError(f"{paths[0]} and {path} have no seed in common: nothing to pair")
            row |= _described(difference, "first_minus_this_")
        rows.append(row)
    table = pd.DataFrame(rows)
    # The first run has no difference, and pandas no missing int otherwise.
    return table.astype({"first_minus_this_seeds": "Int64"})


def _described(values: pd.Series, prefix: str) -> dict[str, float]:
    low, high = bca_interval(values.to_numpy(), np.mean)
    return {
        f"{prefix}seeds": len(values),
        f"{prefix}mean": float(values.mean()),
        f"{prefix}low": low,
        f"{prefix}high": high,
    }
