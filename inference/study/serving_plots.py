"""The picture of models as they would be served: by one, two and all of their experts."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inference.plots import plt
from inference.registry.builtin import label
from inference.study.arms import all_arms
from inference.study.report import MEANINGS, SERVED_ENTRIES, served_words
from inference.study.serving import WAYS
from inference.study.statistics import VIEWS
from inference.study.summary_plots import COLORS, group_handles

MARKERS = dict(zip(WAYS, "os^D"))
#: of the gap between the least score and that of the arm in the middle: what lies further out is cut off
REACH = 4.0


def served(serving: pd.DataFrame) -> Figure:
    """
    The score of every arm at its best setting, mean ± one standard error over seeds: one panel per task, one marker per
    way to serve. What lies far out on the bad side stands at the edge, as values in the order of
    the markers.

    :param serving: the table of :func:`~inference.study.serving_tables.by_serving`.
    """
    best = serving[serving["view"] == VIEWS[0]]
    known = all_arms()
    tasks = list(dict.fromkeys(best.task))
    names = [name for name in known if name in set(best.arm)]
    figure, axes = plt.subplots(
        1,
        len(tasks),
        figsize=(2.6 + 2.4 * len(tasks), 1.6 + 0.33 * len(names)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis, task in zip(axes[0], tasks):
        rows = best[best.task == task]
        measure = rows.measure.iloc[0]
        scale, digits, unit = SERVED_ENTRIES[measure]
        values = scale * rows[measure]
        least, middle = values.min(), values.median()
        edge = middle + REACH * (middle - least)
        beyond: dict[str, list[str]] = {}
        for (_, row), value in zip(rows.iterrows(), values):
            place = names.index(row.arm) + 0.18 * (WAYS.index(row.served) - 1.5)
            color = COLORS[known[row.arm].group.value]
            if value > edge:
                beyond.setdefault(row.arm, []).append(f"{value:.{digits}f}")
                continue
            error = scale * row[f"{measure}_se"]
            axis.plot([value - error, value + error], [place] * 2, color=color, linewidth=1.2)
            axis.plot(value, place, MARKERS[row.served], color=color, markersize=4)
        for arm, entries in beyond.items():
            color = COLORS[known[arm].group.value]
            text = f"{' / '.join(entries)} →"
            axis.annotate(text, (edge, names.index(arm)), ha="right", va="center", fontsize=6, color=color)
        if beyond:
            axis.set_xlim(right=edge)  # where their values stand
        axis.set_title(task, fontsize=9)
        axis.set_xlabel(MEANINGS[measure].replace(", ", ",\n") + (unit and "," + unit), fontsize=8)
        axis.grid(axis="x", linewidth=0.4, alpha=0.5)
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(names)), list(map(label, names)))
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)
    handles = group_handles(known[name].group.value for name in names)
    handles += [
        Line2D([], [], linestyle="", marker=marker, color="0.3", label=served_words(way))
        for way, marker in MARKERS.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
