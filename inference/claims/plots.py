"""Pictures of the study of routing, from its table. Scores of all tasks on one scale: 0 for a frozen router, 1 for the
better of oracle and exact marginal likelihood, so that a difference is a part of what routing is worth on the task."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from inference.claims.comparison import Comparison, Difference, Side, difference
from inference.figure_style import WIDTH
from inference.registry.builtin import label
from inference.routing_study.gate import ENOUGH
from inference.routing_study.summary import gate_frame
from inference.routing_study.tasks import MAIN

FROZEN, LINES = "frozen-router", ("oracle", "exact-marginal")
#: arms of the overview, in this order
OVERVIEW = (*MAIN, "hash", "one-expert", "one-wide-expert")
COLORS = ("tab:blue", "tab:orange", "tab:green")


def by_task(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """:returns: the rows of every task that has final ones, in the order of the table."""
    in_play = set(table[table.stage == "final"].task)
    return {str(task): rows for task, rows in table.groupby("task", sort=False) if task in in_play}


def worth(rows: pd.DataFrame) -> float:
    """What routing is worth on a task: by how much the better line is ahead of the frozen router, in its measure."""
    ahead = [difference(rows, Comparison(Side((line,)), Side((FROZEN,)))) for line in LINES]
    return max(each.mean for each in ahead if each is not None)


def score(rows: pd.DataFrame, arm: str, stage: str = "final") -> float:
    """An arm's, on the scale above; NaN where it did not run."""
    ahead = difference(rows, Comparison(Side((arm,), stage), Side((FROZEN,))))
    return np.nan if ahead is None else ahead.mean / worth(rows)


def gates(table: pd.DataFrame) -> Figure:
    """By how many standard errors routing matters, task by task."""
    frame = gate_frame(table).iloc[::-1]
    figure, axis = plt.subplots(figsize=(WIDTH, 0.3 * len(frame) + 1), layout="constrained")
    axis.barh(frame.task, frame.errors, color=["tab:blue" if passed else "0.75" for passed in frame.passed])
    axis.axvline(ENOUGH, color="black", linestyle=":", label=f"the gate: {ENOUGH:g}")
    axis.set(
        xlabel="standard errors by which the better of oracle and exact marginal beats a frozen router",
        title="Does the task depend on routing?",
    )
    axis.legend(frameon=False, loc="lower right")
    return figure


def overview(table: pd.DataFrame, arms: Sequence[str] = OVERVIEW) -> Figure:
    """The score of every arm on every task, in per cent."""
    tasks = by_task(table)
    arms = [arm for arm in arms if (table.arm == arm).any()]
    values = 100 * np.array([[score(rows, arm) for rows in tasks.values()] for arm in arms])
    figure, axis = plt.subplots(figsize=(WIDTH, 0.34 * len(arms) + 2.4), layout="constrained")
    axis.imshow(values, cmap="RdYlGn", vmin=-50, vmax=110, aspect="auto")
    for i, j in np.argwhere(~np.isnan(values)):
        axis.text(j, i, f"{values[i, j]:.0f}", ha="center", va="center", fontsize=8)
    axis.set_yticks(range(len(arms)), [label(arm) for arm in arms])
    axis.set_xticks(range(len(tasks)), list(tasks), rotation=40, ha="right", fontsize=8)
    axis.set_title("What each way to train finds of what routing is worth (%)")
    return figure


def differences(table: pd.DataFrame, pairs: Iterable[tuple[str, str, str]], title: str, level: float = 0.95) -> Figure:
    """
    Differences of arms on every task, paired by seed, with Student's intervals.

    :param pairs: of each the words, and two arms: to the right of 0 the first one is better.
    """
    tasks, pairs = by_task(table), list(pairs)
    shown = [task for task, rows in tasks.items() if any(_found(rows, *arms) for _, *arms in pairs)]
    figure, axis = plt.subplots(figsize=(WIDTH, 0.36 * len(shown) + 1.3), layout="constrained")
    axis.axvline(0, color="black", linewidth=0.8)
    for place, (words, *arms) in enumerate(pairs):
        shift, drawn = 0.22 * (place - (len(pairs) - 1) / 2), False
        for height, task in enumerate(reversed(shown)):
            found = _found(tasks[task], *arms)
            if found is None:
                continue
            middle, low, high = (100 * value / worth(tasks[task]) for value in (found.mean, *found.interval(level)))
            axis.plot([low, high], [height - shift] * 2, color=COLORS[place], linewidth=1.5)
            axis.plot(middle, height - shift, "o", color=COLORS[place], label=None if drawn else words, markersize=5)
            drawn = True
    axis.set_yticks(range(len(shown)), shown[::-1], fontsize=8)
    axis.set_xscale("symlog", linthresh=10)
    ticks = [-100, -10, 0, 10, 100]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.set(
        xlabel="difference, in % of what routing is worth on the task; to the right: the first is better", title=title
    )
    figure.legend(frameon=False, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _found(rows: pd.DataFrame, first: str, second: str) -> Difference | None:
    """A difference, where both arms ran."""
    return difference(rows, Comparison(Side((first,)), Side((second,))))


def equal_compute(table: pd.DataFrame, arms: Sequence[str] = OVERVIEW) -> Figure:
    """The mean score over tasks at equal numbers of steps, and where every arm evaluates as many experts; of the arms
    that ran on all tasks."""
    tasks = by_task(table).values()
    arms = [arm for arm in (*arms, "exact-marginal") if not np.isnan([score(rows, arm) for rows in tasks]).any()]
    figure, axis = plt.subplots(figsize=(WIDTH, 0.34 * len(arms) + 1.2), layout="constrained")
    for height, arm in enumerate(reversed(arms)):
        steps, compute = (100 * np.mean([score(rows, arm, stage) for rows in tasks]) for stage in ("final", "compute"))
        axis.plot([steps, compute], [height] * 2, color="0.75", zorder=1)
        axis.plot(steps, height, "o", color="tab:blue", label="equal numbers of steps" if height == 0 else None)
        axis.plot(compute, height, "s", color="tab:orange", label="equal compute" if height == 0 else None)
    axis.set_yticks(range(len(arms)), [label(arm) for arm in reversed(arms)])
    axis.set(
        xlabel="mean over tasks of the score (%, 0: frozen router)",
        title="What is left of it if nobody may evaluate more experts than the others?",
    )
    axis.legend(frameon=False)
    return figure
