"""The protocol: gate, tuning, and only then the seeds that are reported."""

from collections.abc import Callable, Sequence

import pandas as pd

from inference.routing_study.gate import gates
from inference.routing_study.rows import table_of
from inference.routing_study.stages import (
    Cell,
    balance_cells,
    compute_cells,
    final_cells,
    gate_cells,
    tuning_cells,
)
from inference.routing_study.task import Task
from inference.routing_study.tuning import choices, mark_chosen, others
from inference.study.cache import Cache, Record
from inference.study.runner import run_all

Done = list[tuple[Cell, Record]]


def conduct(
    tasks: Sequence[Task],
    cache: Cache,
    arms: tuple[str, ...] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> pd.DataFrame:
    """
    Run all stages; what the cache has is not trained again.

    A task that does not pass its gate, or has no arms, is not gone on with: the rows of its gate are all that the table
    has of it.

    :param arms: None for those of every task.
    :param advance: called with a number of runs that are done.
    :returns: the table of :mod:`inference.routing_study.schema`.
    """

    def train(cells: list[Cell]) -> Done:
        return list(zip(cells, run_all([cell.run for cell in cells], cache, advance=advance)))

    done = train([cell for task in tasks for cell in gate_cells(task)])
    passed = gates(mark_chosen(table_of(done)))
    tasks = [task for task in tasks if passed[task.label].passed and task.chosen_arms(arms)]
    tuned = train([cell for task in tasks for cell in tuning_cells(task, task.chosen_arms(arms))])
    if tuned:
        rows = table_of(tuned)
        best = choices(rows)
        other = others(rows, best)
        done += tuned + train(
            [
                cell
                for task in tasks
                for cell in (
                    *final_cells(task, best[task.label]),
                    *compute_cells(task, best[task.label]),
                    *balance_cells(task, other.get(task.label, {})),
                )
            ]
        )
    return mark_chosen(table_of(done))
