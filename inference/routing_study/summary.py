"""The table of the study in short: the gates, and one row per task, arm and number of steps."""

import numpy as np
import pandas as pd

from inference.intervals import wilson_interval
from inference.routing_study.gate import gates
from inference.study.serving import WAYS


def gate_frame(table: pd.DataFrame) -> pd.DataFrame:
    """One row per task: who was ahead of the frozen router, by how much, and whether the task depends on routing."""
    return pd.DataFrame(
        [
            {
                "task": gate.task,
                "measure": gate.measure,
                "better": gate.better,
                "ahead": gate.ahead,
                "error": gate.error,
                "errors": gate.errors,
                "seeds": gate.seeds,
                "passed": gate.passed,
            }
            for gate in gates(table).values()
        ]
    )


def final_frame(table: pd.DataFrame) -> pd.DataFrame:
    """One row per task and arm, at the setting that tuning chose and the task's number of steps."""
    return _summary(table[table.stage == "final"])


def compute_frame(table: pd.DataFrame) -> pd.DataFrame:
    """The same at equal compute: arms of one expert as before, others with fewer steps."""
    rows = table[table.stage.isin(["final", "compute"])]
    # What has rows at equal compute has fewer steps there than among the final ones.
    fewest = rows.groupby(["task", "arm"]).num_steps.transform("min") if len(rows) else rows.num_steps
    return _summary(rows[rows.num_steps == fewest])


def _summary(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        [_row(str(task), str(arm), own) for (task, arm), own in rows.groupby(["task", "arm"], sort=False)]
    )


def _row(task: str, arm: str, rows: pd.DataFrame) -> dict[str, object]:
    chosen = rows[rows.chosen]
    first, measure = chosen.iloc[0], chosen.measure.iloc[0]
    row: dict[str, object] = {
        "task": task,
        "arm": arm,
        **{name: first[name] for name in ("learning_rate", "load_balancing", "served", "measure", "num_steps")},
        "seeds": len(chosen),
        **_mean(chosen[measure], ""),
        "solved": chosen.solved.mean(),
    }
    if chosen.solved.notna().all():
        row["solved_low"], row["solved_high"] = wilson_interval(float(chosen.solved.sum()), len(chosen))
    for way in WAYS:
        row |= _mean(rows[rows.served == way][measure], f"{way}, ")
    evaluations = float(first.evaluations)
    return row | {
        "evaluations": evaluations,
        "milliseconds": 1000 * first.seconds / first.num_steps,  # a step, of all seeds side by side
        "stopped": int(chosen.stopped_at.notna().any()),
    }


def _mean(values: pd.Series, name: str) -> dict[str, float]:
    """Mean and standard error; NaN for what there is not."""
    count = len(values)
    error = float(values.std() / np.sqrt(count)) if count > 1 else np.nan
    return {f"{name}mean": float(values.mean()) if count else np.nan, f"{name}se": error}
