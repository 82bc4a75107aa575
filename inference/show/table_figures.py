"""Pictures of a fitted table: search, calibration, and the region of every expert."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from inference.figure_style import WIDTH, expert_colors, expert_legend
from inference.intervals import wilson_interval

#: of the bars of a histogram, and of the groups of rows that are averaged
GROUPS = 10
#: rows that are averaged at least
EACH = 8
#: points of a line or of a side of a map
FINE = 200
#: for black and white: lines and marks of experts differ in more than colour
STYLES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")


def search(estimator: Any) -> Figure:
    """Where the starts ended, the best one first; or the curves of training."""
    figure, axis = plt.subplots(figsize=(0.7 * WIDTH, 2.8), layout="constrained")
    if hasattr(estimator, "loss_curve_"):
        training, held, epoch = estimator.loss_curve_.T
        axis.plot(epoch, training, color="0.6", label="training: minus the objective")
        if not np.isnan(held).all():
            axis.plot(epoch, held, color="C0", label="rows set aside: minus the log-likelihood")
            axis.plot(epoch[np.nanargmin(held)], np.nanmin(held), "o", color="C0", label="kept")
        axis.set(xlabel="epoch", ylabel="nats per row")
        axis.legend(frameon=False, fontsize=8)
        return figure
    values = np.sort(estimator.restart_log_likelihoods_)[::-1]
    place, above = np.arange(1, len(values) + 1), values > estimator.log_likelihood_ + 1e-3
    axis.plot(place[~above], values[~above], ".", color="0.4")
    if above.any():
        axis.plot(
            place[above], values[above], "o", color="0.4", markersize=4, markerfacecolor="white", label="on the floor"
        )
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.axhline(estimator.log_likelihood_, color="C0", linewidth=1, label="the fit")
    # A few starts that ended nowhere would hide the others.
    low, high = np.quantile(values, 0.05), max(values.max(), estimator.log_likelihood_)
    axis.set_ylim(low - 0.05 * (high - low) - 1, high + 0.05 * (high - low) + 1)
    axis.set(xlabel="start, the best one first", ylabel="log-likelihood (nats)")
    axis.legend(frameon=False, fontsize=8)
    return figure


def shares(given_x: np.ndarray, given_y: np.ndarray) -> Figure:
    """
    :param given_x: mean probabilities of the experts, (k,).
    :param given_y: the same when y is known, (k,).
    """
    k = len(given_x)
    figure, axis = plt.subplots(figsize=(0.7 * WIDTH, 2.4), layout="constrained")
    place, colors = np.arange(k), expert_colors(k)
    axis.bar(place - 0.2, given_x, 0.38, color=colors)
    axis.bar(place + 0.2, given_y, 0.38, color=colors, alpha=0.5, hatch="//", edgecolor="white")
    axis.axhline(1 / k, color="black", linewidth=0.8, linestyle="--")
    plain, hatched = Patch(color="0.5"), Patch(facecolor="0.7", hatch="//", edgecolor="white")
    axis.legend([plain, hatched], ["by the router", "when y is known"], frameon=False, fontsize=8)
    axis.set(xlabel="expert", ylabel="share of the rows", xticks=place)
    return figure


def calibration(levels: np.ndarray, ranks: np.ndarray) -> Figure:
    """
    Of numbers.

    :param ranks: probability of a smaller y than the one that came, (n,); for counts a draw between its ends.
    :param levels: coverages of intervals.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3), layout="constrained")
    groups = int(np.clip(len(ranks) // 10, 4, GROUPS))
    left.hist(ranks, np.linspace(0, 1, groups + 1), color="0.6", edgecolor="white")
    expected = len(ranks) / groups
    spread = 2 * np.sqrt(expected * (1 - 1 / groups))
    left.axhspan(max(expected - spread, 0), expected + spread, color="C0", alpha=0.2, linewidth=0)
    left.axhline(expected, color="C0", linewidth=1)
    left.set(xlabel="probability of a smaller value", ylabel="rows", xlim=(0, 1), title="ranks of what came")
    covered = [(np.abs(ranks - 0.5) <= level / 2).mean() for level in levels]
    right.plot([0, 1], [0, 1], color="C0", linewidth=1)
    right.plot(levels, covered, "o-", color="0.2", markersize=3)
    right.set(xlabel="coverage that was asked for", ylabel="share of rows inside", title="intervals", aspect="equal")
    return figure


def reliability(probabilities: np.ndarray, right: np.ndarray) -> Figure:
    """
    Of classes.

    :param probabilities: of the class that was predicted, (n,).
    :param right: whether it came, (n,).
    """
    figure, axis = plt.subplots(figsize=(0.5 * WIDTH, 3.4), layout="constrained")
    axis.plot([0, 1], [0, 1], color="C0", linewidth=1)
    order = np.argsort(probabilities, kind="stable")
    groups = np.array_split(order, int(np.clip(len(order) // EACH, 1, GROUPS)))
    at = [probabilities[group].mean() for group in groups]
    share = np.array([right[group].mean() for group in groups])
    ends = np.array([wilson_interval(float(right[group].sum()), len(group)) for group in groups])
    bars = np.abs(ends.T - share)
    axis.errorbar(at, share, bars, fmt="o", color="0.2", markersize=4, capsize=2)
    axis.set(
        xlabel="probability of the predicted class",
        ylabel="share of rows where it came",
        ylim=(0, 1.05),
        xlim=(0, 1.05),
    )
    return figure


def one_feature(run: Any, x: pd.DataFrame, y: np.ndarray, responsibilities: np.ndarray) -> Figure:
    """Every expert's mean where the router wants it, the mixture's interval, and the rows by their experts."""
    name = x.columns[0]
    grid = pd.DataFrame({name: np.linspace(x[name].min(), x[name].max(), FINE)})
    k, colors = responsibilities.shape[1], expert_colors(responsibilities.shape[1])
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(WIDTH, 5.6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    router = run.estimator.responsibilities(grid)
    bottom.stackplot(grid[name], router.T, colors=colors, edgecolor="white", linewidth=0.3)
    bottom.set(ylim=(0, 1), ylabel="probability\nof the experts", xlabel=name)
    owner = responsibilities.argmax(1)
    if run.is_classifier:
        classes = run.estimator.classes_
        for place, (label, p) in enumerate(zip(classes, run.estimator.predict_proba(grid).T)):
            top.plot(grid[name], p, color="0.2", linestyle=STYLES[place % len(STYLES)], label=str(label))
        top.set(ylabel=f"probability of {run.target}")
        top.legend(frameon=False, fontsize=8)
        expert_legend(figure, k)
        return figure
    low, high = run.estimator.predict_interval(grid, 0.9).T
    top.fill_between(grid[name], low, high, color="0.88", linewidth=0, label="90 % interval")
    for j in range(k):
        mine = owner == j
        top.plot(x[name][mine], y[mine], MARKS[j % len(MARKS)], color=colors[j], markersize=3.5, alpha=0.7)
        mean = np.where(router[:, j] > 0.05, run.estimator.expert_means(grid)[:, j], np.nan)
        top.plot(grid[name], mean, color=colors[j], linestyle=STYLES[j % len(STYLES)], linewidth=1.6)
    top.set(ylabel=run.target)
    reach = np.concatenate([y, low, high])
    inside = np.quantile(reach, [0.005, 0.995])
    margin = 0.08 * (max(inside[1], y.max()) - min(inside[0], y.min()))
    top.set_ylim(min(inside[0], y.min()) - margin, max(inside[1], y.max()) + margin)
    top.legend(frameon=False, fontsize=8)
    expert_legend(figure, k)
    return figure


def two_features(run: Any, x: pd.DataFrame, responsibilities: np.ndarray) -> Figure:
    """The plane of two numbers, in the colours of the experts that the router wants there."""
    first, second = x.columns
    k, colors = responsibilities.shape[1], expert_colors(responsibilities.shape[1])
    across, up = (np.linspace(x[name].min(), x[name].max(), FINE) for name in (first, second))
    plane = pd.DataFrame({first: np.tile(across, FINE), second: np.repeat(up, FINE)})
    router = run.estimator.responsibilities(plane)
    mixed = 0.45 * router @ np.array([to_rgb(color) for color in colors]) + 0.55
    figure, axis = plt.subplots(figsize=(0.8 * WIDTH, 5), layout="constrained")
    extent = (across[0], across[-1], up[0], up[-1])
    axis.imshow(mixed.reshape(FINE, FINE, 3), origin="lower", extent=extent, aspect="auto")
    if k > 1:
        owner = router.argmax(1).reshape(FINE, FINE)
        for j in range(k):
            if 0 < (owner == j).mean() < 1:
                axis.contour(across, up, owner == j, levels=[0.5], colors="0.25", linewidths=0.8)
    of_row = responsibilities.argmax(1)
    for j in range(k):
        mine = of_row == j
        axis.plot(x[first][mine], x[second][mine], MARKS[j % len(MARKS)], color=colors[j], markersize=4)
    axis.set(xlabel=first, ylabel=second)
    expert_legend(figure, k)
    return figure


def against_features(table: pd.DataFrame, effects: dict[str, float], router: np.ndarray) -> Figure:
    """
    Mean probabilities of the experts against the columns that they follow most.

    :param effects: columns with their effects, the largest first.
    """
    rows = -(-len(effects) // 2)
    columns = min(2, len(effects))
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 2.7 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(effects) :]:
        axis.set_visible(False)
    for axis, (name, effect) in zip(axes.flat, effects.items()):
        _against(axis, table[name], router)
        axis.set(xlabel=f"{name} (effect {effect:.2f})", ylim=(0, 1))
    for axis in axes[:, 0]:
        axis.set_ylabel("probability of the experts")
    expert_legend(figure, router.shape[1])
    return figure


def _against(axis: Axes, cells: pd.Series, router: np.ndarray) -> None:
    k, colors = router.shape[1], expert_colors(router.shape[1])
    if pd.api.types.is_numeric_dtype(cells) and cells.nunique() > GROUPS:
        known = np.flatnonzero(cells.notna())
        order = known[np.argsort(cells.to_numpy()[known], kind="stable")]
        groups = np.array_split(order, int(np.clip(len(order) // EACH, 3, 2 * GROUPS)))
        at = [cells.to_numpy()[group].mean() for group in groups]
        for j in range(k):
            lines = [router[group, j].mean() for group in groups]
            axis.plot(at, lines, STYLES[j % len(STYLES)], color=colors[j], marker=MARKS[j % len(MARKS)], markersize=3)
        return
    words = cells.astype(str).where(cells.notna(), "(missing)")
    most = words.value_counts().index[:GROUPS]
    values = sorted(most, key=_number) if pd.api.types.is_numeric_dtype(cells) else sorted(most)
    bottom = np.zeros(len(values))
    for j in range(k):
        means = np.array([router[(words == value).to_numpy(), j].mean() for value in values])
        axis.bar(range(len(values)), means, 0.8, bottom, color=colors[j], edgecolor="white")
        bottom += means
    axis.set_xticks(range(len(values)), [value[:12] for value in values], rotation=30 if len(values) > 4 else 0)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return np.inf
