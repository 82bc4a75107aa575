"""The command ``gradients``."""

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from inference.gradients.alternatives import alternatives
from inference.gradients.comparison import Grids, compare
from inference.gradients.estimators import estimators
from inference.gradients.expected_gradients import relative_errors
from inference.gradients.tables import BASE_LEGEND, base_tables, enumeration_table, settings_table
from inference.registry.options import Plugins
from inference.runs.exits import end
from inference.runs.outputs import OUTPUTS, output_folder
from inference.runs.progress import console, progress_bar
from inference.runs.records import records

QUICK = Grids(n=(16,), k=(4,), capacity_factor=(1.0, 2.0), sharpness=(1.0, 4.0), imbalance=(1.0, 4.0))
NUM_SAMPLES, QUICK_NUM_SAMPLES = 2000, 500


def gradients(
    n: Annotated[str | None, typer.Option(help="Datapoints, a list.")] = None,
    k: Annotated[str | None, typer.Option(help="Experts, a list.")] = None,
    capacity_factor: Annotated[str | None, typer.Option(help="Capacity is ceil(factor * n / k), a list.")] = None,
    sharpness: Annotated[str | None, typer.Option(help="Scale of the router's parameters, a list.")] = None,
    imbalance: Annotated[
        str | None, typer.Option(help="Nats between the biases of the most and least preferred expert, a list.")
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(help=f"Gradients per estimator and setting; {NUM_SAMPLES}, or {QUICK_NUM_SAMPLES} if quick."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of problem and draws.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer settings and samples.")] = False,
    enumeration: Annotated[
        bool, typer.Option("--enumeration", help="Only the expected gradients of gated alternatives: no sampling.")
    ] = False,
    plugin: Plugins = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all rows as JSON, and nothing else.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for tables and pictures.")] = Path("results"),
) -> None:
    """
    Compare every estimator's gradients with the exact gradient of its objective, and of the router objective.

    A list is written 1,2,4. Its first value is kept while the other properties vary, one at a time.

    Example: python -m inference gradients --n 64 --sharpness 1,4 --num-samples 5000
    """
    # The problems are too small to share between threads.
    torch.set_num_threads(1)
    try:
        defaults = QUICK if quick else Grids()
        grids = Grids(
            n=_numbers("--n", n, int) or defaults.n,
            k=_numbers("--k", k, int) or defaults.k,
            capacity_factor=_numbers("--capacity-factor", capacity_factor, float) or defaults.capacity_factor,
            sharpness=_numbers("--sharpness", sharpness, float) or defaults.sharpness,
            imbalance=_numbers("--imbalance", imbalance, float) or defaults.imbalance,
        )
        if num_samples is None:
            num_samples = QUICK_NUM_SAMPLES if quick else NUM_SAMPLES
        written = OUTPUTS["gradients"][-1:] if enumeration else OUTPUTS["gradients"]
        output_folder(out, written, overwrite=overwrite).mkdir(parents=True, exist_ok=True)
        errors = relative_errors(seed=seed)
        errors.to_csv(out / "expected_gradients.csv", index=False)
        table = None if enumeration else _compare(grids, num_samples, seed, quiet=as_json)
        files = ["expected_gradients.csv", *(() if table is None else _write(table, out))]
    except (ValueError, OSError) as error:
        end(str(error))
    if as_json:
        frames = {"gradients": table, "expected_gradients": errors}
        typer.echo(json.dumps({name: records(frame) for name, frame in frames.items() if frame is not None}))
        return
    if table is not None:
        console.print(*base_tables(table))
        console.print(BASE_LEGEND)
        console.print(settings_table(table))
    console.print(enumeration_table(errors))
    console.print(f"written to {out}: {', '.join(files)}")


def _compare(grids: Grids, num_samples: int, seed: int, *, quiet: bool) -> pd.DataFrame:
    settings = grids.settings()
    rows = [*estimators(), *alternatives()]
    with progress_bar() as progress:
        progress.disable |= quiet
        task = progress.add_task("", total=len(settings) * len(rows))
        return compare(
            settings,
            rows,
            num_samples=num_samples,
            seed=seed,
            advance=lambda name: progress.update(task, advance=1, description=name[:28]),
        )


def _write(table: pd.DataFrame, out: Path) -> list[str]:
    # Drawing is slow to import; --help need not wait for it.
    from inference import plots
    from inference.gradients import plots as gradients_plots

    files = ["gradients.csv", "gradients_variance.png", "gradients_bias.png"]
    table.to_csv(out / files[0], index=False)
    plots.save(gradients_plots.variances(table), out / files[1])
    plots.save(gradients_plots.biases(table), out / files[2])
    return files


def _numbers(option: str, text: str | None, kind: type) -> tuple[Any, ...] | None:
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be a list of {kind.__name__} such as 1,2,4; got {text!r}") from None
