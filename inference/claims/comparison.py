"""Differences between arms, paired by seed, from the table of the study of routing."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from inference.intervals import Interval, student_interval
from inference.registry.builtin import label
from inference.routing_study.tuning import best


@dataclass(frozen=True)
class Side:
    """
    One side of a comparison.

    :param arms: names; of several the mean, seed by seed.
    :param stage: whose rows: final; compute; balance; or tuning, at one learning rate.
    :param rate: of the stage of tuning.
    :param balanced: of the stage of balance, whether with a load-balancing loss.
    """

    arms: tuple[str, ...]
    stage: str = "final"
    rate: float | None = None
    balanced: bool | None = None

    @property
    def label(self) -> str:
        """In words."""
        words = " and ".join(map(label, self.arms))
        if self.rate is not None:
            words += f" at {self.rate:g}"
        return words if self.balanced is None else f"{words}, {'with' if self.balanced else 'without'} a balancing loss"

    def costs(self, table: pd.DataFrame) -> pd.Series | None:
        """
        :param table: the rows of one task.
        :returns: the task's measure by seed; None where an arm did not run.
        """
        found = [self._of(table[table.arm == arm]) for arm in self.arms]
        return None if any(costs is None for costs in found) else pd.concat(found, axis=1, join="inner").mean(axis=1)

    def _of(self, rows: pd.DataFrame) -> pd.Series | None:
        rows = self._at_stage(rows)
        if rows.empty:
            return None
        return rows.set_index("seed")[rows.measure.iloc[0]]

    def _at_stage(self, rows: pd.DataFrame) -> pd.DataFrame:
        if self.stage == "tuning":
            rows = rows[(rows.stage == "tuning") & (rows.learning_rate == self.rate)]
            if rows.empty:
                return rows
            choice = best(rows)
            return rows[(rows.load_balancing == choice.load_balancing) & (rows.served == choice.served)]
        rows = rows[rows.chosen]
        if self.stage == "balance":
            return rows[rows.stage.isin(["final", "balance"]) & ((rows.load_balancing > 0) == self.balanced)]
        own = rows[rows.stage == self.stage]
        # At equal compute an arm of one expert has no rows but its final ones.
        return rows[rows.stage == "final"] if own.empty and self.stage == "compute" else own


@dataclass(frozen=True)
class Comparison:
    """``first`` is better than ``second``."""

    first: Side
    second: Side

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.first.label} over {self.second.label}"


@dataclass(frozen=True)
class Difference:
    """
    A comparison on one task.

    :param values: by how much the first side is ahead, in the task's measure, seed by seed.
    """

    task: str
    measure: str
    comparison: Comparison
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def interval(self, level: float) -> Interval:
        """Student's, of the mean; none, which is NaN, of a single seed."""
        return student_interval(self.values, level=level)


def difference(table: pd.DataFrame, comparison: Comparison) -> Difference | None:
    """
    :param table: the rows of one task.
    :returns: None where a side did not run.
    """
    first, second = comparison.first.costs(table), comparison.second.costs(table)
    if first is None or second is None:
        return None
    ahead = (second - first).dropna()
    return Difference(table.task.iloc[0], table.measure.iloc[0], comparison, tuple(ahead)) if len(ahead) else None
