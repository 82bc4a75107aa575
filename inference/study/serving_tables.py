"""From records to tables of models as they would be served: by one, two and all of their experts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from inference.intervals import bca_interval
from inference.study.arms import all_arms
from inference.study.cache import Record
from inference.study.serving import WAYS
from inference.study.settings import Run
from inference.study.statistics import SETTING, VIEWS, best_setting, per_seed

#: what :func:`~inference.study.serving.measure_serving` measures
SERVED = ["nll", "robust", "beyond", "error"]


def serving_by_seed(runs: Sequence[Run], records: Sequence[Record]) -> pd.DataFrame:
    """One row per run, seed and way to serve, of tasks with a reference; empty without one."""
    tables = []
    for run, record in zip(runs, records):
        if run.reference is None:
            continue
        for way in WAYS:
            if f"nll, {way}" not in record.metrics:
                continue
            nothing = np.full(len(record.metrics["nll"]), np.nan)
            columns = {
                **{name: value for name, value in run.settings().items() if name not in ("task", "seed")},
                "task": run.label,
                "served": way,
                "measure": run.measure,
                "seed": run.seed + np.arange(len(nothing)),
                **{name: record.metrics.get(f"{name}, {way}", nothing) for name in SERVED},
            }
            tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def by_serving(runs: Sequence[Run], records: Sequence[Record]) -> pd.DataFrame:
    """
    One row per task, arm and way to serve: means over seeds, their standard errors and 95 % intervals, at every setting
    and at the best one, which has the least NLL, chosen on every other seed and measured on the rest, and the other way
    round. There also the difference to the task's reference, paired over seeds, in the measure of the task.
    """
    table = serving_by_seed(runs, records)
    if table.empty:
        return table
    references = {run.label: run.reference for run in runs}
    best = {key: _at_best(group) for key, group in table.groupby(["task", "arm", "served"], sort=False)}
    rows = []
    for (task, arm, way), group in table.groupby(["task", "arm", "served"], sort=False):
        named = {"task": task, "group": all_arms()[arm].group.value, "arm": arm, "served": way}
        shared = {**_shared(group), "measure": group.measure.iloc[0]}
        rate, weight = best_setting(_by_cost(group))
        against = best.get((task, *(references[task] or ())))
        rows.append(
            named
            | {"view": VIEWS[0], "learning_rate": rate, "load_balancing": weight}
            | shared
            | _described(best[task, arm, way])
            | _difference(best[task, arm, way], against, group.measure.iloc[0])
            | ({} if against is None else dict(zip(("reference_arm", "reference_served"), references[task] or ())))
        )
        for (rate, weight), part in group.groupby(SETTING, sort=False):
            at = {"view": "this setting", "learning_rate": rate, "load_balancing": weight}
            rows.append(named | at | shared | _described(part.set_index("seed")[SERVED]))
    return pd.DataFrame(rows)


def ruined_rows(runs: Sequence[Run], records: Sequence[Record]) -> pd.DataFrame:
    """One row per test datapoint that is named, run, seed and way to serve: its number in the table, and its cost."""
    found = [
        {"task": run.label, "arm": run.arm}
        | {name: getattr(run, name) for name in SETTING}
        | {"seed": run.seed + number, "served": way, "row": int(row), "nats": nats}
        for run, record in zip(runs, records)
        for way, seeds in record.rows.items()
        for number, worst in enumerate(seeds)
        for row, nats in worst
    ]
    return pd.DataFrame(found)


def _shared(group: pd.DataFrame) -> dict[str, Any]:
    """Settings that are the same in all rows of an arm and task, without those that vary over the grid."""
    others = [name for name in group if name not in (*SERVED, *SETTING, "task", "arm", "served", "seed", "measure")]
    return {name: group[name].iloc[0] for name in others if group[name].nunique() == 1}


def _by_cost(group: pd.DataFrame) -> pd.DataFrame:
    """The same with the robust NLL for the NLL, where there is one: what settings are chosen by."""
    return group if group.robust.isna().any() else group.assign(nll=group.robust)


def _at_best(group: pd.DataFrame) -> pd.DataFrame:
    chosen_by = _by_cost(group).assign(plain=group.nll)
    measures = per_seed(chosen_by, VIEWS[0], [*SERVED, "plain"])
    return measures.assign(nll=measures.plain)[SERVED]


def _described(values: pd.DataFrame) -> dict[str, float]:
    row: dict[str, float] = {"seeds": len(values)}
    for name in SERVED:
        row |= _mean(values[name], name)
    return row


def _difference(values: pd.DataFrame, reference: pd.DataFrame | None, measure: str) -> dict[str, float]:
    if reference is None:
        return {}
    first, second = values[measure].align(reference[measure], join="inner")
    return _mean(first - second, "behind")


def _mean(values: pd.Series, name: str) -> dict[str, float]:
    low, high = bca_interval(values)
    error = values.std() / np.sqrt(len(values))
    return {name: values.mean(), f"{name}_se": error, f"{name}_low": low, f"{name}_high": high}
