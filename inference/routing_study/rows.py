"""From records to rows of the one table: a row per run, seed and way to serve."""

from collections.abc import Iterable
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pandas as pd

from inference.routing_study.evaluations import evaluations
from inference.routing_study.schema import COLUMNS
from inference.routing_study.stages import Cell
from inference.study.cache import Record
from inference.study.serving import WAYS
from inference.study.settings import SeedsRun
from inference.study.statistics import SOLVED_WITHIN

#: what :func:`~inference.study.serving.measure_serving` measures, as far as the table has it
MEASURED = ("nll", "robust", "error")
#: settings that have a column; those of one task alone stand together in another
SHARED = ("arm", "learning_rate", "load_balancing", "capacity_factor", "judged_on", "num_seeds", "num_steps")


def table_of(done: Iterable[tuple[Cell, Record]]) -> pd.DataFrame:
    """:returns: the rows of all runs, where ``chosen`` is still False throughout."""
    parts = [part for cell, record in done for part in _rows(cell, record)]
    table = pd.concat(parts, ignore_index=True)
    return table[[column.name for column in COLUMNS]]


def _rows(cell: Cell, record: Record) -> Iterable[pd.DataFrame]:
    run, task = cell.run, cell.task
    same: dict[str, Any] = {
        "stage": cell.stage.value,
        "task": task.label,
        "measure": task.measure,
        **{name: getattr(run, name) for name in SHARED},
        "further": _further(run),
        "num_experts": task.num_experts,
        "evaluations": evaluations(run.arm, task.num_experts),
        "seconds": round(record.seconds, 3),
        "stopped_at": record.stopped_at,
        "chosen": False,
    }
    for way in WAYS:
        if f"nll, {way}" not in record.metrics:
            continue
        measured = {
            name: np.array(record.metrics.get(f"{name}, {way}", np.full(run.num_seeds, np.nan)), dtype=float)
            for name in MEASURED
        }
        truth = np.array(record.metrics.get("truth", np.full(run.num_seeds, np.nan)))
        solved = np.where(np.isnan(truth), np.nan, measured["nll"] <= truth + SOLVED_WITHIN)
        seeds = run.seed + np.arange(run.num_seeds)
        yield pd.DataFrame({**same, "seed": seeds, "served": way, **measured, "solved": solved})


def _further(run: SeedsRun) -> str:
    """Settings of one task alone: ``"num_pieces=4 num_datapoints=100"``."""
    own = {field.name for field in fields(run)} - {*SHARED, "seed"}
    return " ".join(f"{name}={value}" for name, value in asdict(run).items() if name in own)
