"""The picture of the pieces of a line: what each objective finds, at how many pieces and learning rates."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inference.plots import plt
from inference.registry.builtin import label
from inference.study.arms import all_arms
from inference.study.settings import PiecesRun
from inference.study.statistics import SOLVED_WITHIN
from inference.study.summary_plots import COLORS, group_handles

MARKERS = "ovs^Dp"


def solved_pieces(settings: pd.DataFrame) -> Figure | None:
    """
    Share of seeds solved with Wilson's 95 % intervals: one panel per number of pieces, one row per arm, one marker per
    learning rate.

    :param settings: the table of :func:`~inference.study.statistics.by_setting`.
    :returns: None where it has no pieces.
    """
    table = settings[settings.task.str.endswith(PiecesRun.noun)]
    if table.empty:
        return None
    known = all_arms()
    tasks = list(dict.fromkeys(table.task))
    names = [name for name in known if name in set(table.arm)]
    rates = sorted(table.learning_rate.unique())
    figure, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(3.2 + 2.0 * len(tasks), 1.4 + 0.3 * len(names)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, task in zip(axes[0], tasks):
        for row in table[table.task == task].itertuples():
            place = names.index(row.arm) + 0.22 * (rates.index(row.learning_rate) - (len(rates) - 1) / 2)
            color = COLORS[known[row.arm].group.value]
            axis.plot([100 * row.solved_low, 100 * row.solved_high], [place] * 2, color=color, linewidth=1.2)
            axis.plot(100 * row.solved, place, MARKERS[rates.index(row.learning_rate)], color=color, markersize=4)
        axis.set(title=task, xlim=(-4, 104))
        axis.grid(axis="x", linewidth=0.4, alpha=0.5)
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(names)), list(map(label, names)))
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    seeds = int(table.seeds.max())
    shares = f"share of {seeds} seeds within {SOLVED_WITHIN} nats per datapoint of the true process, %"
    axes[0, len(tasks) // 2].set_xlabel(shares, fontsize=9)
    handles = group_handles(known[name].group.value for name in names)
    if len(rates) > 1:
        handles += [
            Line2D([], [], linestyle="", marker=marker, color="0.3", label=f"learning rate {rate:g}")
            for marker, rate in zip(MARKERS, rates)
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure
