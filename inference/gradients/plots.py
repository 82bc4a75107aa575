"""Pictures of a comparison of gradients."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from inference.registry.builtin import label

#: within so many standard errors an estimator passes as unbiased
BAND = 5

#: what varies, a column of panels each
COLUMNS = {
    "capacity_factor": "capacity factor",
    "sharpness": "router sharpness",
    "imbalance": "imbalance of the router, nats",
}
#: which parameters with which baseline, a row of panels each
ROWS = {
    ("router", "decaying"): "all router parameters,\ndecaying baseline",
    ("router bias", "decaying"): "shared router bias,\ndecaying baseline",
    ("router bias", "none"): "shared router bias,\nno baseline",
}


def variances(frame: pd.DataFrame) -> Figure:
    """Variance relative to independent routing, against three properties of the setting; biased twins are dashed."""
    rows = frame[frame.objective == "router"]
    figure, axes = plt.subplots(3, 3, figsize=(10, 8), sharex="col", sharey="row", layout="constrained")
    for line, ((part, baseline), name) in enumerate(ROWS.items()):
        for axis, column in zip(axes[line], COLUMNS):
            _lines(
                axis,
                rows[(rows.part == part) & (rows.baseline == baseline) & rows.varies.isin(("base", column))],
                column,
            )
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.grid(axis="y", color="0.93")
        axes[line, 0].set_ylabel(name)
    for axis, text in zip(axes[-1], COLUMNS.values()):
        axis.set_xlabel(text)
    base = frame[frame.varies == "base"].iloc[0]
    figure.suptitle(
        "Variance of the gradient of the router objective, by that of independent routing with the same baseline\n"
        f"(where it does not vary: n = {base.n}, k = {base.k}, capacity factor {base.capacity_factor:g}, "
        f"sharpness {base.sharpness:g}, imbalance {base.imbalance:g})",
        fontsize=9,
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _lines(axis: Axes, panel: pd.DataFrame, column: str) -> None:
    colours: dict[str, str] = {}
    # In the order of the table, so that every panel has the same colours.
    for (name, biased), line in panel.groupby(["estimator", "biased"], sort=False):
        colour = colours.setdefault(name.removesuffix("-unweighted"), f"C{len(colours)}")
        line = line.sort_values(column)
        axis.plot(
            line[column],
            line.relative_variance,
            color=colour,
            linestyle="--" if biased else "-",
            marker="o",
            markersize=3.5,
            markerfacecolor="white" if biased else None,
            label=f"{label(name)} (biased)" if biased else label(name),
        )


def biases(frame: pd.DataFrame) -> Figure:
    """
    A line for every estimator, a dot for every setting: bias in standard errors, with the band in which it passes as
    unbiased, and as a fraction, beside what chance alone gives. Left out is what the table says as well: deterministic
    models that get the gradient of their own objective right.
    """
    trivial = frame.deterministic & ~frame.biased
    rows = frame[(frame.part == "router") & frame.bias_fraction.notna() & ~trivial]
    # Unbiased ones on top.
    groups = sorted(rows.groupby(["estimator", "baseline", "objective"], sort=False), key=lambda g: g[1].biased.iloc[0])
    figure, axes = plt.subplots(1, 2, figsize=(10, 1.8 + 0.2 * len(groups)), sharey=True, layout="constrained")
    axes[0].axvspan(0, BAND, color="C2", alpha=0.15, linewidth=0, label=f"within {BAND} standard errors")
    # Where infinity is drawn.
    largest = 3 * max(10 * BAND, float(rows.bias_se.where(~rows.withheld).replace(np.inf, np.nan).max()))
    for line, (_, group) in enumerate(groups):
        # Weights of infinite variance leave no standard error.
        _dots(axes[0], group.bias_se[~group.withheld], line, group.biased.iloc[0], largest)
        chance = group.bias_fraction_se[group.bias_fraction_se > 0]
        axes[1].scatter(chance, [line] * len(chance), marker="|", color="0.6", s=30)
        _dots(axes[1], group.bias_fraction, line, group.biased.iloc[0], np.inf)
    first_biased = sum(not group.biased.iloc[0] for _, group in groups)
    for axis in axes:
        axis.axhline(first_biased - 0.5, color="black", linewidth=0.8)
        axis.grid(axis="y", color="0.93")
        axis.set_axisbelow(True)
    axes[0].set_yticks(range(len(groups)), [_label(*key) for key, _ in groups], fontsize=7)
    axes[0].set(xscale="symlog", xlim=(0, 1.5 * largest), ylim=(len(groups) - 0.5, -0.5))
    axes[0].set_xlabel(
        "bias of the worst coordinate, standard errors\n(▶: no noise, and misses; where withheld, no dot)"
    )
    axes[0].legend(loc="upper right", fontsize=8)
    axes[1].set(xscale="log")
    axes[1].set_xlabel("|mean − exact| / |exact|\n(grey ticks: what chance alone gives)")
    figure.suptitle(
        "Router's parameters, one dot per setting. Above the line: unbiased estimators; below it: biased ones",
        fontsize=9,
    )
    return figure


def _dots(axis: Axes, values: pd.Series, line: int, biased: bool, largest: float) -> None:
    colour = "C3" if biased else "C0"
    inside = values[values < largest]
    axis.scatter(inside, [line] * len(inside), color=colour, s=12, alpha=0.7, linewidth=0)
    if len(inside) < len(values):
        axis.scatter([largest], [line], color=colour, s=22, marker=">")


def _label(estimator: str, baseline: str, objective: str) -> str:
    if not baseline:
        return f"{label(estimator)}: {objective}"
    return f"{label(estimator)}: {'no' if baseline == 'none' else baseline} baseline, {objective}"
