"""Whether a task depends on routing at all."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from inference.routing_study.stages import GATE_ARMS

#: standard errors by which the better of oracle and exact marginal must be ahead of a frozen router
ENOUGH = 5.0


@dataclass(frozen=True)
class Gate:
    """
    :param better: the arm that was held against the frozen router.
    :param ahead: by how much it is ahead, in the task's measure, mean over seeds.
    :param error: standard error of that mean.
    """

    task: str
    measure: str
    better: str
    ahead: float
    error: float
    seeds: int

    @property
    def errors(self) -> float:
        """By how many standard errors it is ahead; infinitely many where every seed says exactly the same."""
        return self.ahead / self.error if self.error > 0 else math.copysign(math.inf, self.ahead) if self.ahead else 0.0

    @property
    def passed(self) -> bool:
        """Whether the task depends on routing."""
        return self.errors >= ENOUGH


def gates(table: pd.DataFrame) -> dict[str, Gate]:
    """
    :param table: with ``chosen`` set in the rows of the gate.
    :returns: by task.
    """
    rows = table[(table.stage == "gate") & table.chosen]
    return {str(task): _gate(str(task), of_task) for task, of_task in rows.groupby("task", sort=False)}


def _gate(task: str, rows: pd.DataFrame) -> Gate:
    measure = rows.measure.iloc[0]
    costs = rows.pivot(index="seed", columns="arm", values=measure)
    *candidates, frozen = (arm for arm in GATE_ARMS if arm in costs)
    better = min(candidates, key=lambda arm: float(costs[arm].mean()))
    ahead = costs[frozen] - costs[better]
    error = float(ahead.std() / np.sqrt(len(ahead))) if len(ahead) > 1 else math.inf
    return Gate(task, measure, better, float(ahead.mean()), error, len(ahead))
