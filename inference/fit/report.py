"""What a finished fit shows: tables, pictures, and a result for machines."""

import json
import math
from typing import Any

import pandas as pd
from rich.table import Table

from inference.runs.progress import console
from inference.runs.run_folder import RunFolder
from inference.tasks import Task
from inference.training.run import FitResult


def write_results(task: Task, results: dict[int, FitResult], title: str, run: RunFolder) -> list[str]:
    """
    Tables and pictures of all seeds.

    :returns: the names of the files.
    """
    # Drawing is slow to import; --help need not wait for it.
    from inference import plots
    from inference.training import plots as fit_plots

    run.path.mkdir(parents=True, exist_ok=True)
    metrics = metrics_table(results)
    curve = pd.concat([result.curve for result in results.values()], ignore_index=True)
    seed, first = next(iter(results.items()))
    stem = f"fit_{task.name}"
    metrics.to_csv(run.path / f"{stem}.csv")
    curve.to_csv(run.path / f"{stem}_curve.csv", index=False)
    plots.save(fit_plots.training_curve(curve, next(iter(first.metrics)), title), run.path / f"{stem}_curve.png")
    use = fit_plots.expert_use(first.use, task.group_label, task.group_names, f"{title}\ntest set, seed {seed}")
    plots.save(use, run.path / f"{stem}_use.png")
    return [f"{stem}.csv", f"{stem}_curve.csv", f"{stem}_curve.png", f"{stem}_use.png"]


def metrics_table(results: dict[int, FitResult]) -> pd.DataFrame:
    """One row per seed, one column per metric of the test set."""
    return pd.DataFrame({seed: result.metrics for seed, result in results.items()}).T.rename_axis("seed")


def print_table(results: dict[int, FitResult], title: str) -> None:
    """Means over the seeds, for people."""
    console.print(_table(metrics_table(results), title))


def as_json(results: dict[int, FitResult], config: dict[str, Any], run: RunFolder) -> str:
    """The same for machines: options, folder, and the metrics of every seed; null where a number is not finite."""
    metrics = {str(seed): _finite(result.metrics) for seed, result in results.items()}
    return json.dumps({"options": config, "out": str(run.path), "metrics": metrics}, allow_nan=False)


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in metrics.items()}


def _table(metrics: pd.DataFrame, title: str) -> Table:
    seeds = f"{len(metrics)} seeds, ± one standard error" if len(metrics) > 1 else f"seed {metrics.index[0]}"
    table = Table("test set", title=f"{title}\n({seeds})")
    table.add_column("mean" if len(metrics) > 1 else "value", justify="right")
    for name in metrics:
        table.add_row(str(name), _summary(metrics[name]))
    return table


def _summary(values: pd.Series) -> str:
    """Mean and standard error of a metric over seeds, or its range where some are infinite, as a Pareto k can be."""
    if len(values) == 1:
        return f"{values.iloc[0]:.4g}"
    if values.map(math.isfinite).all():
        return f"{values.mean():.4g} ± {values.sem():.2g}"
    return f"{values.min():.4g} to {values.max():.4g}"
