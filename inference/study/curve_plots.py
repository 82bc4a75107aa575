"""Pictures of single runs on a task in one dimension: learning curves and fits."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inference.plots import plt
from inference.registry.builtin import label
from inference.study.arms import Group, all_arms
from inference.study.cache import Record
from inference.study.settings import Run, StackedRun
from inference.study.statistics import SOLVED_WITHIN
from models.piecewise import NOISE

#: NLL of the true process in expectation, the entropy of its noise, nats per datapoint
TRUTH = 0.5 * math.log(2 * math.pi * math.e * NOISE**2)
REFERENCE = "exact-gradient"
COLUMNS = 5


def shown(runs: Sequence[Run], records: Sequence[Record]) -> list[tuple[StackedRun, Record]]:
    """The runs in one dimension at the setting of the first one, a run an arm."""
    stacked = [(run, record) for run, record in zip(runs, records) if isinstance(run, StackedRun)]
    if not stacked:
        return []
    first = stacked[0][0]
    same = ("label", "learning_rate", "load_balancing")
    return [(run, record) for run, record in stacked if all(getattr(run, n) == getattr(first, n) for n in same)]


def learning_curves(runs: Sequence[Run], records: Sequence[Record]) -> Figure | None:
    """
    Median held-out NLL over seeds with the band between the quartiles, against the step; one panel per objective.

    :returns: None without a run in one dimension.
    """
    drawn = shown(runs, records)
    if not drawn:
        return None
    known = all_arms()
    groups = [group for group in Group if any(known[run.arm].group is group for run, _ in drawn)]
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(10, 3.3 * rows), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    reference = {run.arm: record.curve for run, record in drawn}.get(REFERENCE)
    for axis, group in zip(axes.flat, groups):
        members = [(run, record) for run, record in drawn if known[run.arm].group is group]
        for index, (run, record) in enumerate(members):
            curve = record.curve
            axis.plot(curve["step"], curve["median"], color=f"C{index}", label=label(run.arm))
            axis.fill_between(curve["step"], curve["low"], curve["high"], color=f"C{index}", alpha=0.12, linewidth=0)
        if reference is not None and REFERENCE not in [run.arm for run, _ in members]:
            axis.plot(reference["step"], reference["median"], color="black", linestyle=":", label=label(REFERENCE))
        axis.axhline(TRUTH, color="black", linewidth=0.8, linestyle="--", label="true process")
        axis.set(title=group.value, yscale="symlog", ylim=(TRUTH - 0.2, None))
        axis.legend(frameon=False, fontsize=7, ncols=2 if len(members) > 5 else 1)
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    figure.supxlabel("step")
    figure.supylabel("held-out NLL, nats per datapoint\n(median and quartiles over seeds)", fontsize=9)
    run = drawn[0][0]
    figure.suptitle(f"{run.label}, learning rate {run.learning_rate:g}, load-balancing weight {run.load_balancing:g}")
    return figure


def fits(runs: Sequence[Run], records: Sequence[Record]) -> Figure | None:
    """
    The first seed: the experts' lines, as wide as the router's probability is large, and what is served.

    :returns: None without a run in one dimension.
    """
    drawn = shown(runs, records)
    if not drawn:
        return None
    rows = -(-len(drawn) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(11, 2.4 * rows + 0.5), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (run, record) in zip(axes.flat, drawn):
        _fit(axis, run, record)
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(drawn) - COLUMNS) : len(drawn)]:
        axis.set_xlabel("x")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("y")
    handles = [
        Line2D([], [], linestyle="--", color="black", label="true means"),
        Line2D([], [], linewidth=4, color="C0", label="experts (width: probability)"),
        Line2D([], [], color="0.5", linewidth=1, label="as served"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _fit(axis: Axes, run: StackedRun, record: Record) -> None:
    picture = {name: np.asarray(values) for name, values in record.picture.items()}
    x = picture["x"]
    for color, (line, probability) in enumerate(zip(picture["lines"], picture["probabilities"])):
        # Where the router never goes, an expert's line means nothing: it fades.
        axis.scatter(x, line, s=12 * probability, color=f"C{color}", linewidths=0)
    axis.plot(x, picture["served"], color="0.5", linewidth=1)
    mean = picture["mean"]
    axis.plot(x, mean, color="black", linewidth=0.8, linestyle="--")
    metrics = record.metrics
    solved = np.mean(np.array(metrics["nll"]) <= np.array(metrics["truth"]) + SOLVED_WITHIN)
    axis.set(ylim=(mean.min() - 0.6, mean.max() + 0.6))
    axis.set_title(f"{label(run.arm)}\n{100 * solved:.0f} % of seeds solved", fontsize=8)
