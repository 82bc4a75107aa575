"""The command ``gradients``."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numba
import torch
import typer

from inference.gradients import Grids, compare
from inference.gradients_estimators import estimators
from inference.gradients_tables import base_table, settings_table
from inference.progress import console, progress_bar

QUICK = Grids(n=(16,), k=(4,), capacity_factor=(1.0, 2.0), sharpness=(1.0, 4.0), imbalance=(1.0, 4.0))


def gradients(
    n: Annotated[str | None, typer.Option(help="Datapoints, a list.")] = None,
    k: Annotated[str | None, typer.Option(help="Experts, a list.")] = None,
    capacity_factor: Annotated[str | None, typer.Option(help="Capacity is ceil(factor * n / k), a list.")] = None,
    sharpness: Annotated[str | None, typer.Option(help="Scale of the router's parameters, a list.")] = None,
    imbalance: Annotated[
        str | None, typer.Option(help="Nats between the biases of the most and least preferred expert, a list.")
    ] = None,
    num_samples: Annotated[int | None, typer.Option(help="Gradients of every estimator and setting.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of problem and draws.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer settings and samples.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print all rows as JSON, and nothing else.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for table and pictures.")] = Path("results"),
) -> None:
    """
    Compare every estimator's gradients with the exact gradient of its objective, and of the router objective.

    A list is written 1,2,4. Its first value is kept while the other properties vary.

    Example: python -m inference gradients --n 64 --sharpness 1,4 --num-samples 5000
    """
    # Drawing is slow to import; --help need not wait for it.
    from inference import gradients_plots, plots

    # The problems are too small to share between threads.
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    try:
        given = {
            "n": _numbers("--n", n, int),
            "k": _numbers("--k", k, int),
            "capacity_factor": _numbers("--capacity-factor", capacity_factor, float),
            "sharpness": _numbers("--sharpness", sharpness, float),
            "imbalance": _numbers("--imbalance", imbalance, float),
        }
        defaults = asdict(QUICK if quick else Grids())
        settings = Grids(**defaults | {name: values for name, values in given.items() if values is not None}).settings()
        rows = estimators()
        samples = num_samples if num_samples is not None else 500 if quick else 2000
        out.mkdir(parents=True, exist_ok=True)
        with progress_bar() as progress:
            # A bar would stand between the JSON.
            progress.disable = json
            task = progress.add_task("", total=len(settings) * len(rows))
            table = compare(
                settings,
                rows,
                num_samples=samples,
                seed=seed,
                advance=lambda name: progress.update(task, advance=1, description=name[:28]),
            )
        table.to_csv(out / "gradients.csv", index=False)
        plots.save(gradients_plots.variances(table), out / "gradients_variance.png")
        plots.save(gradients_plots.biases(table), out / "gradients_bias.png")
    except (ValueError, OSError) as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(2) from None
    if json:
        typer.echo(table.to_json(orient="records"))
        return
    console.print(base_table(table))
    console.print(settings_table(table))
    console.print(f"written to {out}: gradients.csv, gradients_variance.png, gradients_bias.png")


def _numbers(option: str, text: str | None, kind: type) -> tuple[Any, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be a list of {kind.__name__} such as 1,2,4; got {text!r}") from None
