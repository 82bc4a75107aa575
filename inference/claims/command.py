"""The command ``claims``."""

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from inference.claims.page import blocks, everything, read_table, rewritten
from inference.claims.verdicts import Verdict, verdicts
from inference.registry.options import Plugins
from inference.runs.atomic import write_atomically
from inference.runs.exits import end
from inference.runs.progress import console
from inference.runs.records import records


def claims(
    table: Annotated[Path, typer.Argument(help="The table of study routing, a CSV file.")],
    page: Annotated[
        Path | None,
        typer.Option(help="Rewrite the tables of this page instead, between its <!-- table: NAME --> lines."),
    ] = None,
    plugin: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON, and nothing else.")] = False,
) -> None:
    """
    What the study of routing says of every claim: on every task by how much, with an interval and a verdict.

    Example: python -m inference claims results/routing/routing.csv
    """
    try:
        found = read_table(table)
        if page is not None:
            text = rewritten(page.read_text(encoding="utf-8"), blocks(found))
            write_atomically(page, text.encode())
            console.print(f"{page} has the tables of {table}", soft_wrap=True)
            return
    except (ValueError, OSError) as error:
        end(str(error))
    if as_json:
        typer.echo(json.dumps(records(frame(verdicts(found))), allow_nan=False))
    else:
        console.print(everything(found), markup=False, highlight=False, soft_wrap=True)


def frame(found: list[Verdict]) -> pd.DataFrame:
    """One row per claim and task: the comparison that speaks least for it, counts and verdicts."""
    rows = []
    for each in found:
        for task in each.tasks:
            low, high = task.interval
            rows.append(
                {
                    "claim": each.claim.name,
                    "of": each.claim.of,
                    "sentence": each.claim.sentence,
                    "overall": each.verdict,
                    "task": task.task,
                    "verdict": task.verdict,
                    "comparisons": len(task.differences),
                    "ahead": task.ahead,
                    "behind": task.behind,
                    "worst": task.worst.comparison.label,
                    "measure": task.worst.measure,
                    "seeds": len(task.worst.values),
                    "difference": task.worst.mean,
                    "low": low,
                    "high": high,
                    "level": task.level,
                }
            )
    return pd.DataFrame(rows)
