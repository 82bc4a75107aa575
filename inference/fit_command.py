"""The command ``fit``."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.progress import Progress, TaskID
from rich.table import Table

from inference.fit import NonFiniteLossError
from inference.fit_run import FitOptions, FitResult, Status, run_fit, steps_per_epoch
from inference.objective import Assignment, Baseline, Estimator
from inference.progress import console, progress_bar
from inference.tasks import TASKS, ModelOptions, Task

#: fits 80 columns
DETAILS = (
    "{task.fields[rate]} datapoints/s, loss {task.fields[loss]}, load {task.fields[load]}, {task.fields[drops]} % drop"
)


class TaskName(StrEnum):
    """What can be fitted."""

    DIGITS = "digits"
    PIECEWISE = "piecewise"


class Serve(StrEnum):
    """Which assignment serves."""

    MODE = "mode"
    SAMPLE = "sample"


def fit(
    task: Annotated[TaskName, typer.Argument(help="What to fit.")],
    assignment: Annotated[Assignment, typer.Option(help="Procedure that assigns.")] = Assignment.GUMBEL_MATCHING,
    capacity_factor: Annotated[float, typer.Option(help="Capacity is ceil(factor * n / k).")] = 1.25,
    estimator: Annotated[
        Estimator, typer.Option(help="Router objective, its biased unweighted twin, or balanced objective.")
    ] = Estimator.WEIGHTED,
    baseline: Annotated[Baseline, typer.Option(help="Subtracted from the cost.")] = Baseline.DECAYING,
    num_particles: Annotated[int | None, typer.Option(help="Draws a step; 2 with leave-one-out, else 1.")] = None,
    num_experts: Annotated[int | None, typer.Option(help="Experts of a layer.")] = None,
    hidden_features: Annotated[int | None, typer.Option(help="Width of an expert.")] = None,
    num_layers: Annotated[int, typer.Option(help="Layers of experts (digits: 1 or 2).")] = 1,
    load_balancing: Annotated[float, typer.Option(help="Weight of the load-balancing loss.")] = 0.0,
    num_epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Datapoints a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of Adam.")] = None,
    serve: Annotated[Serve, typer.Option(help="Serve by the mode, or by a draw.")] = Serve.MODE,
    seed: Annotated[int, typer.Option(help="First seed of parameters, order and draws.")] = 0,
    num_seeds: Annotated[int, typer.Option(help="Fits with seeds that count up from the first.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder for table, curve and pictures.")] = Path("results"),
) -> None:
    """
    Fit a mixture of experts and judge it on the test set. The test set is served as one batch.

    Example: python -m inference fit digits --assignment dependent-rounding --num-seeds 3
    """
    # The tensors are too small to share between threads.
    torch.set_num_threads(1)
    try:
        if num_seeds < 1:
            raise ValueError(f"num_seeds must be a positive int, got {num_seeds!r}")
        chosen = TASKS[task]()
        options = FitOptions(
            num_epochs=chosen.num_epochs if num_epochs is None else num_epochs,
            batch_size=chosen.batch_size if batch_size is None else batch_size,
            learning_rate=chosen.learning_rate if learning_rate is None else learning_rate,
            model=ModelOptions(
                assignment, baseline, capacity_factor, load_balancing, num_experts, hidden_features, num_layers
            ),
            estimator=estimator,
            num_particles=(2 if baseline is Baseline.LEAVE_ONE_OUT else 1) if num_particles is None else num_particles,
            sample=serve is Serve.SAMPLE,
        )
        results = _run(chosen, options, range(seed, seed + num_seeds))
        title = (
            f"{task}: {assignment}, {estimator}, baseline {baseline}\n"
            f"capacity factor {capacity_factor:g}, served by {serve}"
        )
        _write(chosen, results, title, out)
    except (ValueError, NotImplementedError, NonFiniteLossError, OSError) as error:
        # Pyro appends the shapes of the trace to what is wrong.
        reason = str(error).partition("\n")[0] or f"{assignment} cannot be trained with the estimator {estimator}"
        console.print(f"[red]{reason}[/red]")
        raise typer.Exit(2) from None


def _run(task: Task, options: FitOptions, seeds: range) -> dict[int, FitResult]:
    results = {}
    total = options.num_epochs * steps_per_epoch(task, options.batch_size)
    with progress_bar(DETAILS, description_width=6) as progress:
        for seed in seeds:
            fields = _fields(Status(*[float("nan")] * 4))
            bar = progress.add_task(f"seed {seed}", total=total, **fields)
            results[seed] = run_fit(task, options, seed, partial(_advance, progress, bar))
    return results


def _advance(progress: Progress, bar: TaskID, status: Status) -> None:
    progress.update(bar, advance=1, **_fields(status))


def _fields(status: Status) -> dict[str, Any]:
    return {
        "rate": f"{status.rate:,.0f}",
        "loss": f"{status.loss:.3f}",
        "load": f"{status.max_mean_load:.2f}",
        "drops": f"{100 * status.drop_rate:.1f}",
    }


def _write(task: Task, results: dict[int, FitResult], title: str, out: Path) -> None:
    # Drawing is slow to import; --help need not wait for it.
    from inference import fit_plots, plots

    out.mkdir(parents=True, exist_ok=True)
    metrics = pd.DataFrame({seed: result.metrics for seed, result in results.items()}).T.rename_axis("seed")
    curve = pd.concat([result.curve for result in results.values()], ignore_index=True)
    seed, first = next(iter(results.items()))
    stem = f"fit_{task.name}"
    metrics.to_csv(out / f"{stem}.csv")
    curve.to_csv(out / f"{stem}_curve.csv", index=False)
    plots.save(fit_plots.training_curve(curve, next(iter(first.metrics)), title), out / f"{stem}_curve.png")
    use = fit_plots.expert_use(first.use, task.group_label, task.group_names, f"{title}\ntest set, seed {seed}")
    plots.save(use, out / f"{stem}_use.png")
    console.print(_table(metrics, title))
    console.print(f"written to {out}: {stem}.csv, {stem}_curve.csv, {stem}_curve.png, {stem}_use.png")


def _table(metrics: pd.DataFrame, title: str) -> Table:
    seeds = f"{len(metrics)} seeds, ± one standard error" if len(metrics) > 1 else f"seed {metrics.index[0]}"
    table = Table("test set", title=f"{title}\n({seeds})")
    table.add_column("mean" if len(metrics) > 1 else "value", justify="right")
    for name in metrics:
        mean, error = metrics[name].mean(), metrics[name].sem()
        table.add_row(str(name), f"{mean:.4g} ± {error:.2g}" if len(metrics) > 1 else f"{mean:.4g}")
    return table
