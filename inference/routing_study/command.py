"""The command ``study routing``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import joblib
import typer

from inference.registry.names import resolve
from inference.registry.options import Plugins
from inference.routing_study.costs import estimate, told
from inference.routing_study.protocol import conduct
from inference.routing_study.report import report
from inference.routing_study.schema import check
from inference.routing_study.task import Task
from inference.routing_study.tasks import TASKS, reduced
from inference.runs.exits import end, note
from inference.runs.outputs import OUTPUTS, output_folder
from inference.runs.progress import console, progress_bar
from inference.runs.records import records
from inference.study.arms import all_arms
from inference.study.cache import Cache
from inference.study.workers import RUNS_ARE_KEPT, Jobs, Scheduler, workers


def study_routing(
    small: Annotated[
        bool, typer.Option("--reduced", help="Three tasks, few arms, fewer seeds: at most 10 minutes on two cores.")
    ] = False,
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task, by its label in tables; may be repeated.")
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="Only this arm, and the lines that frame a task; may be repeated.")
    ] = None,
    num_seeds: Annotated[int | None, typer.Option(help="Seeds that are reported, instead of each task's own.")] = None,
    num_steps: Annotated[int | None, typer.Option(help="Steps of Adam, instead of each task's own.")] = None,
    jobs: Jobs = -1,
    scheduler: Scheduler = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, table and report.")] = Path("results/routing"),
    plugin: Plugins = None,
    cost_only: Annotated[bool, typer.Option("--cost", help="Print what it would cost, and leave.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace table and report; runs stay.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report's tables as JSON, and nothing else.")
    ] = False,
) -> None:
    """
    Find out which tasks depend on routing, tune every way to train a router equally, and compare them on further seeds.

    Says first what it will cost. Finished runs are kept in OUT/runs and not trained again: an interrupted study goes on
    where it stopped. All rows are in OUT/routing.csv, which the command claims reads. A rule of a --plugin is an arm.

    Example: python -m inference study routing --reduced --jobs 2
    """
    try:
        asked = None if arm is None else tuple(resolve("arm", name, all_arms()) for name in arm)
        tasks = _tasks(reduced() if small else TASKS, task, num_seeds, num_steps)
        output_folder(out, OUTPUTS["study routing"], overwrite=overwrite or cost_only, kept=RUNS_ARE_KEPT)
        cache = Cache(out / "runs")
        estimates = [estimate(each, each.chosen_arms(asked), cache) for each in tasks]
        for line in told(estimates, joblib.cpu_count() if jobs == -1 else jobs):
            note(line)
        if cost_only:
            return
        out.mkdir(parents=True, exist_ok=True)
        with progress_bar() as progress, workers(scheduler, jobs):
            bar = progress.add_task("runs", total=sum(each.runs for each in estimates))
            table = conduct(tasks, cache, asked, advance=lambda count: progress.update(bar, advance=count))
        table.to_csv(out / "routing.csv", index=False, float_format="%.6g")
        check(table)
    except (ValueError, OSError) as error:
        end(str(error))
    tables = report(table)
    (out / "routing.md").write_text(tables.markdown, encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({name: records(frame) for name, frame in tables.frames.items()}, allow_nan=False))
    else:
        console.print(tables.markdown, markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"written to {out}: routing.csv; routing.md (python -m inference claims {out / 'routing.csv'})",
            soft_wrap=True,
        )


def _tasks(
    tasks: tuple[Task, ...], labels: list[str] | None, num_seeds: int | None, num_steps: int | None
) -> list[Task]:
    """
    :raises ValueError: on an unknown label, or a number that is not positive.
    """
    known = {each.label: each for each in tasks}
    chosen = tasks if labels is None else [known[resolve("task", label, known)] for label in labels]
    changed: dict[str, Any] = {}
    for name, value in (("num_seeds", num_seeds), ("num_steps", num_steps)):
        if value is None:
            continue
        if value < 1:
            raise ValueError(f"{name} must be a positive int, got {value!r}")
        changed[name] = value
    return [replace(each, **changed) for each in dict.fromkeys(chosen)]
