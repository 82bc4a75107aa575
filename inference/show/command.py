"""The command ``show``."""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from inference.registry.options import Plugins
from inference.runs.atomic import write_atomically
from inference.runs.exits import end
from inference.runs.outputs import check_new_file
from inference.runs.progress import console
from inference.training.device import default_dtype


def show(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of a run: the --out of a fit.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the report goes.", show_default="RUN_FOLDER/report.html")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Whose routing is shown.", show_default="the first with a checkpoint")
    ] = None,
    plugin: Plugins = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is no report of this run.")] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the numbers as JSON, and nothing else; with --out, write the report, too."),
    ] = False,
) -> None:
    """
    Show a run in a report: one HTML file with its pictures inside, which needs neither network nor scripts.

    Learning curves, loads, drops, importance weights, router map, assignment and exchange graphs, use of experts.

    Of a fit of a table: search, shares, calibration, the region of every expert, example rows.

    A fit that goes on, or was stopped, can be shown as well, and again: the report before is replaced.

    Exit codes: 0 done; 2 bad input, or the run lacks something or is damaged: then the report has what is left.

    Example: python -m inference show results/fit_digits
    """
    torch.set_num_threads(1)
    # Drawing is slow to import; --help need not wait for it.
    from inference.runs.run_reader import load_fit, read_run
    from inference.show.report import Report, is_report_of
    from inference.show.routing_view import routing_view
    from inference.show.run_summary import summary
    from inference.tables.table_run import is_table_run

    if is_table_run(folder):
        _show_table(folder, out, overwrite, as_json)
        return
    try:
        if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
            raise ValueError(f"--out must be a file in a folder that exists, got {out}")
        run = read_run(folder)
        if seed is not None and seed not in run.config.seeds:
            seeds = ", ".join(map(str, run.config.seeds))
            raise ValueError(f"seed {seed} is not one of the run, which has {seeds}")
        file = run.folder.report if out is None else out
        writes = out is not None or not as_json
        if writes:
            check_new_file(file, overwrite=overwrite or is_report_of(run, file))
        shown = run.seed_to_show if seed is None else seed
        fit, view, why_not = None, None, "the model draws no assignment"
        with default_dtype(run.config.dtype):
            try:
                fit = load_fit(run, shown)
                view = routing_view(fit)
            except ValueError as error:
                why_not = str(error)
                run.problems.append(why_not)
            report = Report(run, shown, fit, view, why_not)
            html = report.html() if writes else None
        if html is not None:
            write_atomically(file, html.encode())
    except (ValueError, OSError) as error:
        end(str(error))
    if as_json:
        typer.echo(json.dumps(summary(run, shown, view), allow_nan=False))
    if run.problems:
        shown_without = ", ".join(report.left_out) or "nothing else"
        written = "" if html is None else f"; {file} shows what is left, without: {shown_without}"
        end("; ".join(run.problems) + written)
    if not as_json:
        console.print(f"written to {file}", markup=False, highlight=False, soft_wrap=True)


def _show_table(folder: Path, out: Path | None, overwrite: bool, as_json: bool) -> None:
    from inference.show.table_report import ORIGIN, TableReport
    from inference.tables.table_run import REPORT, TableRun

    file = folder / REPORT if out is None else out
    try:
        run = TableRun.load(folder)
        if as_json:
            typer.echo(
                json.dumps({"metrics": run.metrics, "notes": run.notes, "shares": run.estimator.shares_.tolist()})
            )
            if out is None:
                return
        if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
            raise ValueError(f"--out must be a file in a folder that exists, got {out}")
        earlier = file.is_file() and f'content="{ORIGIN}'.encode() in file.read_bytes()
        check_new_file(file, overwrite=overwrite or earlier)
        report = TableReport(run)
        write_atomically(file, report.html().encode())
    except (ValueError, OSError) as error:
        end(str(error))
    if report.left_out:
        why = "; ".join(sorted(set(report.left_out.values())))
        end(f"{why}; {file} shows what is left, without: {', '.join(report.left_out)}")
    if not as_json:
        console.print(f"written to {file}", markup=False, highlight=False, soft_wrap=True)
