"""Pictures of a study's tables: every arm with its intervals, and how it depends on its settings."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from inference.plots import plt
from inference.registry.builtin import label
from inference.study.arms import Group, all_arms
from inference.study.curve_plots import TRUTH
from inference.study.statistics import SETTING, VIEWS

COLORS = {group.value: f"C{index}" for index, group in enumerate(Group)}
LABELS = {"solved": "seeds solved, %", "nll": "NLL, nats", "error": "error as served"}


def summary(arms: pd.DataFrame) -> Figure:
    """
    Every arm with 95 % intervals, grouped by objective: filled at its best setting, hollow averaged over the grid.

    :param arms: the table of :func:`~inference.study.statistics.by_arm`.
    """
    panels = []
    for task, table in arms.groupby("task", sort=False):
        first = "error" if table.solved.isna().all() else "solved"
        panels += [(str(task), first, table), (str(task), "nll", table)]
    names = [name for name in all_arms() if name in set(arms.arm)]
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.7 + 1.7 * len(panels), max(3.0, 1.3 + 0.23 * len(names))),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, (task, measure, table) in zip(axes[0], panels):
        _panel(axis, table, measure, names, above=TRUTH if first == "solved" and measure == "nll" else None)
        axis.set_title(task.replace(", ", ",\n"), fontsize=9)
    axes[0, 0].set_yticks(range(len(names)), list(map(label, names)))
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    handles = group_handles(arms.group)
    handles += [
        Line2D([], [], linestyle="", marker="o", color="0.3", markerfacecolor=face, label=view)
        for view, face in zip(VIEWS, ("0.3", "white"))
    ]
    columns = min(3, len(panels))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    return figure


def group_handles(groups: Iterable[str]) -> list[Line2D]:
    """For a legend: the colours of the groups that occur."""
    there = set(groups)
    return [
        Line2D([], [], linestyle="", marker="s", color=color, label=group)
        for group, color in COLORS.items()
        if group in there
    ]


def _panel(axis: Axes, table: pd.DataFrame, measure: str, names: list[str], above: float | None) -> None:
    scale, shift = (100.0, 0.0) if measure == "solved" else (1.0, above or 0.0)
    for view, offset in zip(VIEWS, (-0.16, 0.16)):
        rows = table[table["view"] == view].set_index("arm")
        for place, name in enumerate(names):
            if name not in rows.index:
                continue
            row = rows.loc[name]
            middle, low, high = (scale * row[c] - shift for c in (measure, f"{measure}_low", f"{measure}_high"))
            color = COLORS[row["group"]]
            axis.plot([low, high], [place + offset] * 2, color=color, linewidth=1.2)
            face = color if view == VIEWS[0] else "white"
            axis.plot(middle, place + offset, "o", color=color, markerfacecolor=face, markersize=4)
    measured = LABELS[measure]
    if measure == "solved":
        axis.set_xlim(-4, 104)
    elif above is not None:
        axis.set(xscale="log", xlim=(0.05, None))
        axis.xaxis.set_minor_formatter(NullFormatter())
        measured = "NLL above the\ntrue process, nats"
    axis.set_xlabel(measured, fontsize=8)
    axis.grid(axis="x", linewidth=0.4, alpha=0.5)
    axis.tick_params(axis="y", length=0)
    known = all_arms()
    for place in range(1, len(names)):
        if known[names[place]].group is not known[names[place - 1]].group:
            axis.axhline(place - 0.5, color="0.8", linewidth=0.6)


def claims(contrasts: pd.DataFrame) -> Figure:
    """
    Paired differences with 95 % intervals, one row per claim; what lies right of 0 speaks for the claim.

    :param contrasts: the table of :func:`~inference.study.statistics.contrasts`.
    """
    tasks = list(dict.fromkeys(contrasts.task))
    names = list(dict.fromkeys(contrasts.arm.map(label) + " − " + contrasts.minus.map(label)))
    figure, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(3 + 2.2 * len(tasks), 1.2 + 0.28 * len(names)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, task in zip(axes[0], tasks):
        rows = contrasts[contrasts.task == task]
        solvable = rows.solved.notna().any()
        measure, scale = ("solved", 100.0) if solvable else ("error", -100.0)
        for view, offset, face in zip(VIEWS, (-0.14, 0.14), ("C0", "white")):
            for _, row in rows[rows["view"] == view].iterrows():
                place = names.index(f"{label(row.arm)} − {label(row.minus)}") + offset
                axis.plot([scale * row[f"{measure}_low"], scale * row[f"{measure}_high"]], [place] * 2, color="C0")
                axis.plot(scale * row[measure], place, "o", color="C0", markerfacecolor=face, markersize=4, label=view)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(task, fontsize=9)
        axis.set_xlabel("more seeds solved,\npoints" if solvable else "less error,\npoints", fontsize=8)
    axes[0, 0].set_yticks(range(len(names)), names)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    views = dict(zip(labels, handles))
    figure.legend(views.values(), views.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def robustness(settings: pd.DataFrame) -> Figure | None:
    """
    Solved fraction over the grid: one panel per arm, one heat map learning rate x load balancing per task.

    :param settings: the table of :func:`~inference.study.statistics.by_setting`.
    :returns: None where no task can be solved.
    """
    table = settings[settings.solved.notna()]
    if table.empty:
        return None
    tasks = list(dict.fromkeys(table.task))
    known = all_arms()
    names = [name for name in known if name in set(table.arm)]
    columns = min(6, len(names))
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(13, 1.35 * rows + 0.9), squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    for axis, name in zip(axes.flat, names):
        image = _heat_map(axis, table[table.arm == name], tasks, table)
        axis.set_title(label(name), fontsize=9, color=COLORS[known[name].group.value])
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(names) - columns) : len(names)]:
        axis.tick_params(labelbottom=True)
    figure.colorbar(image, ax=axes, shrink=0.6, pad=0.01, label="seeds solved, %")
    figure.supylabel("load-balancing weight", fontsize=9)
    beside = "; ".join(f"{side}: {task}" for side, task in zip(("left block", "right block"), tasks))
    figure.supxlabel(f"learning rate ({beside})" if len(tasks) > 1 else f"learning rate ({tasks[0]})", fontsize=9)
    return figure


def _heat_map(axis: Axes, rows: pd.DataFrame, tasks: list[str], table: pd.DataFrame) -> AxesImage:
    rates, weights = (np.sort(table[name].unique()) for name in SETTING)
    gap = 1 if len(tasks) > 1 else 0
    grid = np.full((len(weights), len(tasks) * (len(rates) + gap) - gap), np.nan)
    for row in rows.itertuples():
        column = tasks.index(row.task) * (len(rates) + gap) + int(np.searchsorted(rates, row.learning_rate))
        grid[int(np.searchsorted(weights, row.load_balancing)), column] = 100 * row.solved
    image = axis.imshow(grid, vmin=0, vmax=100, cmap="viridis", aspect="auto", origin="lower")
    for (i, j), value in np.ndenumerate(grid):
        if not np.isnan(value):
            axis.text(
                j, i, f"{value:.0f}", ha="center", va="center", color="white" if value < 60 else "black", fontsize=8
            )
    places = [t * (len(rates) + gap) + r for t in range(len(tasks)) for r in range(len(rates))]
    axis.set_xticks(places, [f"{rate:g}" for _ in tasks for rate in rates], fontsize=7)
    axis.set_yticks(range(len(weights)), [f"{weight:g}" for weight in weights], fontsize=8)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    return image
