"""Whether a claim holds: on every task, and overall."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from inference.claims.catalogue import CLAIMS, Claim
from inference.claims.comparison import Difference, difference
from inference.intervals import Interval

HOLDS, DOES_NOT, UNDECIDED = "holds", "does not", "undecided"
#: probability that a claim without anything to it is given a verdict on any of its tasks
ERROR = 0.05


@dataclass(frozen=True)
class OnTask:
    """
    A claim on a task.

    :param differences: its comparisons, of which there is at least one.
    :param verdict: holds, if every difference is above 0 at ``level``; does not, if one is below 0 at
        ``reverse_level``; else undecided.
    :param level: of the intervals, joint over the tasks of the claim. That all comparisons of a task hold at it needs
        no further correction, as one that does not would be enough against it.
    :param reverse_level: joint over all comparisons of the claim.
    """

    task: str
    differences: tuple[Difference, ...]
    level: float
    reverse_level: float

    @property
    def verdict(self) -> str:
        if self.ahead == len(self.differences):
            return HOLDS
        return DOES_NOT if self.behind else UNDECIDED

    @property
    def ahead(self) -> int:
        """Number of comparisons that hold."""
        return sum(each.interval(self.level)[0] > 0 for each in self.differences)

    @property
    def behind(self) -> int:
        """Number of comparisons of which the opposite holds."""
        return sum(each.interval(self.reverse_level)[1] < 0 for each in self.differences)

    @property
    def worst(self) -> Difference:
        """The difference that speaks least for the claim."""
        return min(self.differences, key=lambda each: each.mean)

    @property
    def interval(self) -> Interval:
        """Of the worst difference."""
        return self.worst.interval(self.level)


@dataclass(frozen=True)
class Verdict:
    """
    A claim on all tasks that depend on routing and have its arms.

    :param verdict: does not, if it does not on one of them; holds, if it holds on more than half of them; else
        undecided.
    """

    claim: Claim
    tasks: tuple[OnTask, ...]

    @property
    def verdict(self) -> str:
        if any(task.verdict == DOES_NOT for task in self.tasks):
            return DOES_NOT
        return HOLDS if 2 * self.count(HOLDS) > len(self.tasks) else UNDECIDED

    def count(self, verdict: str) -> int:
        """:returns: on how many tasks this is the verdict."""
        return sum(task.verdict == verdict for task in self.tasks)

    @property
    def num_comparisons(self) -> int:
        return sum(len(task.differences) for task in self.tasks)


def verdicts(table: pd.DataFrame, claims: Sequence[Claim] = CLAIMS) -> list[Verdict]:
    """
    :param table: of :mod:`inference.routing_study.schema`. Tasks without final rows, which did not pass their gate,
        take no part.
    """
    in_play = set(table[table.stage == "final"].task)
    by_task = {str(task): rows for task, rows in table.groupby("task", sort=False) if task in in_play}
    return [_verdict(claim, by_task) for claim in claims]


def _verdict(claim: Claim, by_task: Mapping[str, pd.DataFrame]) -> Verdict:
    found = {
        task: [each for comparison in claim.comparisons(rows) if (each := difference(rows, comparison)) is not None]
        for task, rows in by_task.items()
    }
    found = {task: differences for task, differences in found.items() if differences}
    total = sum(map(len, found.values()))
    return Verdict(
        claim,
        tuple(
            OnTask(task, tuple(differences), 1 - ERROR / len(found), 1 - ERROR / total)
            for task, differences in found.items()
        ),
    )
