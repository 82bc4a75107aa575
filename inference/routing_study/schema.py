"""What the table of the study must look like."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from inference.study.serving import WAYS

STAGES = ("gate", "tuning", "final", "balance", "compute")
#: of each row there is one
KEY = ["stage", "task", "arm", "learning_rate", "load_balancing", "seed", "served"]


@dataclass(frozen=True)
class Column:
    """
    One column.

    :param kind: text, whole (a whole number), number or yes-no.
    :param words: what it holds.
    :param low: least value of a number.
    :param high: largest value of one.
    :param among: the values that a text may have, None for any but the empty one.
    :param may_miss: whether a cell may be empty.
    """

    name: str
    kind: str
    words: str
    low: float = -np.inf
    high: float = np.inf
    among: tuple[str, ...] | None = None
    may_miss: bool = False

    def faults(self, values: pd.Series) -> Iterable[str]:
        """:returns: a sentence for everything that is wrong with the values."""
        missing = values.isna()
        if missing.any() and not self.may_miss:
            yield f"column {self.name!r} has {missing.sum()} empty cells"
        values = values[~missing]
        if self.kind == "yes-no":
            wrong = values[~values.isin([True, False])]
        elif self.kind == "text":
            wrong = values[~values.isin(self.among)] if self.among else values[~values.map(_is_text)]
        else:
            numbers = pd.to_numeric(values, errors="coerce")
            fits = (numbers >= self.low) & (numbers <= self.high)
            wrong = values[~fits | ((numbers % 1 != 0) if self.kind == "whole" else False)]
        if len(wrong):
            yield f"column {self.name!r} ({self.words}) must not hold {wrong.iloc[0]!r}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


COLUMNS = (
    Column("stage", "text", "what the run is for", among=STAGES),
    Column("task", "text", "label of the task"),
    Column("arm", "text", "name of the arm"),
    Column("learning_rate", "number", "of Adam", low=1e-12, high=10),
    Column("load_balancing", "number", "weight of the load-balancing loss", low=0, high=1e3),
    Column("capacity_factor", "number", "capacity is ceil(factor n m / k)", low=0, high=1e3),
    Column("num_steps", "whole", "of the optimiser", low=1),
    Column("num_seeds", "whole", "that are trained side by side", low=1),
    Column("further", "text", "settings that the task alone has"),
    Column("judged_on", "text", "part of the data", among=("validation", "test")),
    Column("num_experts", "whole", "k", low=1),
    Column("evaluations", "number", "experts evaluated for a datapoint in training", low=0),
    Column("seconds", "number", "of processor time, of the run with all its seeds", low=0),
    Column("stopped_at", "whole", "last step at which loss and gradients were finite", low=0, may_miss=True),
    Column("seed", "whole", "of data, start and draws", low=0),
    Column("served", "text", "by how many experts", among=WAYS),
    Column("chosen", "yes-no", "whether setting and way to serve are those that tuning chose for the arm"),
    Column("measure", "text", "the column that the task is judged by", among=("nll", "robust", "error")),
    Column("nll", "number", "nats per datapoint"),
    Column("robust", "number", "nats per datapoint, none costing more than 10", high=10, may_miss=True),
    Column("error", "number", "share misclassified, or root-mean-square error", low=0),
    Column("solved", "number", "1 where the NLL is within 0.5 nats of the truth", low=0, high=1, may_miss=True),
)


def check(table: pd.DataFrame) -> None:
    """
    Hold a table to the schema: the columns, their types and ranges, one row for a run, seed and way to serve, and no
    result missing: on every task that has final rows, all arms that were tuned, on the same seeds, judged one way.

    :raises ValueError: naming what is wrong first.
    """
    for fault in faults(table):
        raise ValueError(f"not a table of this study: {fault}")


def faults(table: pd.DataFrame) -> Iterable[str]:
    """:returns: a sentence for everything that is wrong."""
    names = [column.name for column in COLUMNS]
    if list(table.columns) != names:
        absent = [name for name in names if name not in table]
        yield f"columns must be {', '.join(names)}; missing: {', '.join(absent) or 'none, the order or others differ'}"
        return
    if table.empty:
        yield "no rows"
    for column in COLUMNS:
        yield from column.faults(table[column.name])
    twice = table[table.duplicated(KEY)]
    if len(twice):
        yield f"two rows for {dict(twice.iloc[0][KEY])}"
    for task, rows in table.groupby("task", sort=False):
        yield from _incomplete(str(task), rows)


def _incomplete(task: str, rows: pd.DataFrame) -> Iterable[str]:
    measures = rows.measure.unique()
    if len(measures) > 1:
        yield f"{task} is judged by {' and '.join(measures)}"
        return
    if rows[measures[0]].isna().any():
        yield f"{task} has rows without its measure, {measures[0]}"
    final = rows[(rows.stage == "final") & rows.chosen]
    tuned = rows[rows.stage == "tuning"].arm.unique()
    if final.empty:
        return
    seeds = set(final.seed)
    for arm in tuned:
        own = final[final.arm == arm].seed
        if set(own) != seeds or len(own) != len(seeds):
            yield f"{task} has {len(own)} final results of {arm}, for {len(seeds)} seeds"
