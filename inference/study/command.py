"""The command ``study``."""

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from inference.registry.names import resolve
from inference.registry.options import Plugins
from inference.runs.exits import end
from inference.runs.outputs import OUTPUTS, output_folder
from inference.runs.progress import console, progress_bar
from inference.runs.records import records
from inference.study.arms import all_arms
from inference.study.cache import Cache, Record
from inference.study.grids import GRIDS, Grid
from inference.study.report import is_served
from inference.study.runner import run_all
from inference.study.serving_tables import by_serving, ruined_rows
from inference.study.settings import Run
from inference.study.statistics import VIEWS, by_arm, by_setting, contrasts, seed_table
from inference.study.tables import arm_table, contrast_table, serving_table
from inference.study.workers import RUNS_ARE_KEPT, Jobs, Scheduler, workers

#: in the order in which they are told
PICTURES = ("pieces", "serving", "summary", "claims", "robustness", "curves", "fits")


class Size(StrEnum):
    """How much to run."""

    NONE = "none"
    PIECES = "pieces"
    REGIMES = "regimes"
    TABLES = "tables"
    REDUCED = "reduced"
    FULL = "full"


def study(
    grid: Annotated[
        Size,
        typer.Option(
            help="none: core arms, one setting; pieces: objectives on pieces of a line; regimes: digits with permuted "
            "labels; tables: real tables, served by 1, 2 and all experts; reduced: all arms, small, < 10 minutes; "
            "full: hours."
        ),
    ] = Size.NONE,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm, on every task; may be repeated.")] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task of the grid, by its label in tables; may be repeated.")
    ] = None,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="Of Adam, but on plain digits; may be repeated.")
    ] = None,
    load_balancing: Annotated[
        list[float] | None, typer.Option(help="Weight of the load-balancing loss; may be repeated.")
    ] = None,
    break_at: Annotated[
        list[float] | None, typer.Option(help="Where the lines of the toy change, in (0, 1); may be repeated.")
    ] = None,
    num_seeds: Annotated[
        int | None, typer.Option(help="Data sets and starts that are trained side by side, but on plain digits.")
    ] = None,
    num_steps: Annotated[int | None, typer.Option(help="Steps of Adam, but on plain digits.")] = None,
    capacity_factor: Annotated[
        float | None, typer.Option(help="Capacity is ceil(factor * n m / k), but on plain digits.")
    ] = None,
    pieces: Annotated[
        list[int] | None, typer.Option(help="Pieces of a line, as many as experts; may be repeated; 0 for none.")
    ] = None,
    digits_seeds: Annotated[int | None, typer.Option(help="Seeds of the digits; 0 leaves them out.")] = None,
    seed: Annotated[int, typer.Option(help="First seed of data, parameters and draws.")] = 0,
    jobs: Jobs = -1,
    scheduler: Scheduler = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, tables and pictures.")] = Path("results/study"),
    plugin: Plugins = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace tables and pictures; runs stay.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON, and nothing else.")] = False,
) -> None:
    """
    Train every way to route on the same grid of settings, and compare.

    Finished runs are kept in OUT/runs and not trained again, also with --overwrite, which is for tables and pictures:
    an interrupted study goes on where it stopped. All sizes write the same files.

    Example: python -m inference study --grid full --jobs 2
    """
    options: dict[str, Any] = {
        "arms": None if arm is None else [],
        "learning_rates": learning_rate,
        "load_balancing": load_balancing,
        "breaks": break_at,
        "num_seeds": num_seeds,
        "num_steps": num_steps,
        "pieces": None if pieces is None else [number for number in pieces if number],
        "pieces_learning_rates": learning_rate,
        "pieces_seeds": num_seeds,
        "pieces_steps": num_steps,
        "capacity_factor": capacity_factor,
        "digits_seeds": digits_seeds,
        "seed": seed,
        "tasks": task,
    }
    of_parts = {
        "learning_rates": learning_rate,
        "load_balancing": load_balancing,
        "penalised": None if load_balancing is None else [],
        "capacity_factor": capacity_factor,
        "num_seeds": num_seeds,
        "num_steps": num_steps,
    }
    try:
        if arm is not None:
            options["arms"] = [resolve("arm", name, all_arms()) for name in arm]
        options["parts"] = [replace(part, **_given(of_parts)) for part in GRIDS[grid].parts]
        chosen = replace(GRIDS[grid], **_given(options))
        runs = chosen.runs()
        output_folder(out, OUTPUTS["study"], overwrite=overwrite, kept=RUNS_ARE_KEPT).mkdir(parents=True, exist_ok=True)
        with progress_bar() as progress, workers(scheduler, jobs):
            bar = progress.add_task("runs", total=len(runs))
            done = run_all(runs, Cache(out / "runs"), advance=lambda count: progress.update(bar, advance=count))
        tables = _write(runs, done, chosen, out)
    except (ValueError, OSError) as error:
        end(str(error))
    if as_json:
        typer.echo(json.dumps({name: records(table) for name, table in tables.items()}, allow_nan=False))
    else:
        _print(tables, chosen, out)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Those that were given, as a grid holds them."""
    return {name: _fixed(value) for name, value in options.items() if value is not None}


def _fixed(value: Any) -> Any:
    """Lists become tuples, each value once."""
    return tuple(dict.fromkeys(value)) if isinstance(value, list) else value


def _write(runs: list[Run], done: list[Record], grid: Grid, out: Path) -> dict[str, pd.DataFrame]:
    """:returns: the tables by name, as they were written; that of the seeds is in its file alone."""
    # Drawing is slow to import; --help need not wait for it.
    from inference.plots import save
    from inference.study import curve_plots, pieces_plots, report, serving_plots, summary_plots

    seeds = seed_table(runs, done)
    tables = {"arms": by_arm(seeds), "contrasts": contrasts(seeds), "settings": by_setting(seeds)}
    maybe = {"serving": by_serving(runs, done), "rows": ruined_rows(runs, done)}
    tables |= {name: table for name, table in maybe.items() if len(table)}
    for name in ("seeds", *tables, *maybe):
        # That of an earlier study would be taken for this one's.
        (out / f"{name}.csv").unlink(missing_ok=True)
    for name, table in {"seeds": seeds, **tables}.items():
        table.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
    (out / "report.md").write_text(report.report(tables, grid), encoding="utf-8")
    pictures = {
        "pieces": pieces_plots.solved_pieces(tables["settings"]),
        "serving": serving_plots.served(tables["serving"]) if "serving" in tables else None,
        "summary": summary_plots.summary(tables["arms"]),
        "claims": summary_plots.claims(tables["contrasts"]) if len(tables["contrasts"]) else None,
        "robustness": summary_plots.robustness(tables["settings"]),
        "curves": curve_plots.learning_curves(runs, done),
        "fits": curve_plots.fits(runs, done),
    }
    assert tuple(pictures) == PICTURES
    for name, figure in pictures.items():
        if figure is None:
            (out / f"{name}.png").unlink(missing_ok=True)
        else:
            save(figure, out / f"{name}.png")
    return tables


def _print(tables: dict[str, pd.DataFrame], grid: Grid, out: Path) -> None:
    arms, differences = tables["arms"], tables["contrasts"]
    for task in dict.fromkeys(arms.task):
        if is_served(tables, task):
            console.print(serving_table(tables["serving"], task, grid.describe(task)))
            continue
        # With one setting, the views are one.
        for view in VIEWS[: grid.num_settings(task)]:
            console.print(arm_table(arms, task, view, grid.describe(task)))
            if task in set(differences.get("task", [])):
                console.print(contrast_table(differences, task, view))
    written = ", ".join(f"{name}.csv" for name in ("seeds", *tables))
    pictures = ", ".join(f"{name}.png" for name in PICTURES if (out / f"{name}.png").exists())
    console.print(f"written to {out}: {written}; report.md; {pictures}")
