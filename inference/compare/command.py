"""The command ``compare``."""

import json
import math
import os
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich import box
from rich.table import Table

from inference.compare.differences import Part, compare_runs
from inference.registry.options import Plugins
from inference.runs.atomic import write_atomically
from inference.runs.exits import end
from inference.runs.outputs import check_new_file
from inference.runs.progress import console


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_FOLDER...", help="Folders of fits of one task.")],
    metric: Annotated[
        str | None, typer.Option(help="A column of the run's table of metrics.", show_default="the task's first")
    ] = None,
    part: Annotated[Part, typer.Option(help="On which part of the data.")] = Part.VALIDATION,
    out: Annotated[Path | None, typer.Option(help="Write the table to this CSV file, too.")] = None,
    plugin: Plugins = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the CSV file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON, and nothing else.")] = False,
) -> None:
    """
    Compare runs of fit: the mean of a metric over seeds, and the first run minus every other, paired by seed.

    Brackets are 95 % intervals over seeds by BCa's bootstrap. Seeds that are not done yet are left out.

    Exit codes: 0 done, 2 bad input.

    Example: python -m inference compare results/language/bound results/language/switch --part test
    """
    try:
        if out is not None:
            check_new_file(out, overwrite=overwrite)
        table = compare_runs(folders, metric, part)
        if out is not None:
            write_atomically(out, table.to_csv(index=False).encode())
    except (ValueError, OSError) as error:
        end(str(error))
    if as_json:
        rows = table.astype(object).where(table.notna(), None).to_dict("records")
        typer.echo(json.dumps(rows, allow_nan=False))
    else:
        console.print(_printed(table))


def _printed(table: pd.DataFrame) -> Table:
    first, common = table.iloc[0], Path(os.path.commonpath(list(table.run)))
    title = f"{first.metric}, {first.part} part of the data\n\\[95 % intervals over seeds: BCa]"
    printed = Table(title=title, title_justify="left", box=box.SIMPLE)
    for number, name in enumerate(("run", "seeds", "mean", "first minus this, by seed")):
        printed.add_column(name, justify="right" if number else "left", overflow="fold")
    for number, row in table.iterrows():
        difference = _entry(row, "first_minus_this_", "+") if number else ""
        printed.add_row(str(Path(row.run).relative_to(common)), str(row.seeds), _entry(row, ""), difference)
    return printed


def _entry(row: pd.Series, prefix: str, sign: str = "") -> str:
    mean, low, high = (row[f"{prefix}{name}"] for name in ("mean", "low", "high"))
    ends = "" if math.isnan(low) else f" \\[{low:{sign}.4g}, {high:{sign}.4g}]"
    return f"{mean:{sign}.4g}{ends}"
