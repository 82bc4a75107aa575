"""Pictures of a posterior of the piecewise task."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inference.posterior import RAW


def traces(draws: Any) -> Figure:
    """
    Traces of the experts' coefficients, chains side by side, labels as drawn (left) and in order (right); below, noise
    and log joint density, which have no labels. Ticks mark draws after a divergence.
    """
    names = [("experts", "level"), ("experts", "slope")]
    if "router" in draws.posterior:
        names.append(("router", "slope"))
    rows = len(names) + 1
    figure, axes = plt.subplots(rows, 2, figsize=(10, 1.9 * rows), sharex=True, layout="constrained")
    for row, (name, feature) in zip(axes, names):
        for axis, group in zip(row, (RAW, "posterior")):
            _chains(axis, draws[group][name].sel(feature=feature).to_numpy())
        row[0].set_ylabel(f"{name}:\n{feature}")
        row[1].sharey(row[0])
    if "noise" in draws.posterior:
        _chains(axes[-1, 0], draws.posterior.noise.to_numpy()[..., None], color="0.3")
        axes[-1, 0].set_ylabel("noise (y)")
    else:
        axes[-1, 0].set_visible(False)
    _chains(axes[-1, 1], draws.sample_stats.lp.to_numpy()[..., None], color="0.3")
    axes[-1, 1].set_ylabel("log joint\n(nats)")
    for draw in np.flatnonzero(draws.sample_stats.diverging.to_numpy().ravel()):
        axes[-1, 1].axvline(draw, ymax=0.06, color="C3", linewidth=1)
    axes[0, 0].set_title("labels as the chains drew them", fontsize=9)
    axes[0, 1].set_title("experts in ascending order of the router's slope", fontsize=9)
    num_chains, num_draws = draws.posterior.sizes["chain"], draws.posterior.sizes["draw"]
    for axis in axes[-1]:
        axis.set_xlabel(f"draw ({num_chains} chains of {num_draws}, one after the other)")
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _chains(axis: Axes, values: NDArray[Any], color: str | None = None) -> None:
    """:param values: (chain, draw, series)."""
    num_chains, num_draws, num_series = values.shape
    for chain in range(num_chains):
        position = chain * num_draws + np.arange(num_draws)
        for series in range(num_series):
            label = None if chain else f"expert {series}"
            axis.plot(position, values[chain, :, series], linewidth=0.5, color=color or f"C{series}", label=label)
        if chain:
            axis.axvline(position[0] - 0.5, color="black", linewidth=0.8, linestyle="--")
    axis.margins(x=0)


def predictive(draws: Any, num_lines: int = 40) -> Figure:
    """Data in the bands of new observations, with the experts' lines; and the router's probabilities with theirs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    x, y = draws.constant_data.x.to_numpy(), draws.observed_data.y.to_numpy()
    order = x.argsort()
    new = draws.posterior_predictive.y.to_numpy().reshape(-1, len(x))[:, order]
    for mass, alpha in ((90, 0.15), (50, 0.3)):
        low, high = np.percentile(new, [50 - mass / 2, 50 + mass / 2], axis=0)
        left.fill_between(x[order], low, high, color="0.4", alpha=alpha, linewidth=0, label=f"{mass} % of new y")
    grid = np.linspace(x.min(), x.max(), 200)
    features = np.stack([np.ones_like(grid), grid - 0.5])
    experts = _flat(draws, "experts") @ features  # (draws, k, grid)
    probabilities = np.ones_like(experts)
    if "router" in draws.posterior:
        logits = _flat(draws, "router") @ features
        odds = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = odds / odds.sum(1, keepdims=True)
    for j in range(experts.shape[1]):
        for draw in np.linspace(0, len(experts) - 1, num_lines).astype(int):
            # Where the router does not go, an expert's line means nothing: it is left out.
            line = np.where(probabilities[draw, j] > 0.1, experts[draw, j], np.nan)
            left.plot(grid, line, color=f"C{j}", linewidth=0.6, alpha=0.4)
        low, middle, high = np.percentile(probabilities[:, j], [5, 50, 95], axis=0)
        right.fill_between(grid, low, high, color=f"C{j}", alpha=0.2, linewidth=0)
        right.plot(grid, middle, color=f"C{j}", label=f"expert {j}")
    left.scatter(x, y, s=8, color="black", label="data", zorder=3)
    left.set(xlabel="x", ylabel="y", title=f"data, new observations, {num_lines} draws of the experts' lines")
    right.set(xlabel="x", ylabel="router probability", title="router: median and 90 % of the draws")
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=8, loc="center right")
    return figure


def _flat(draws: Any, name: str) -> NDArray[Any]:
    """(chain, draw, ...) -> (draws, ...)"""
    values = draws.posterior[name].to_numpy()
    return values.reshape(-1, *values.shape[2:])


def comparison(table: pd.DataFrame, loos: dict[int, Any], x: NDArray[Any]) -> Figure:
    """
    Numbers of experts: how far each is behind the best, and how far its estimate can be trusted at every datapoint.

    :param table: as :func:`~inference.posterior_report.compare` gives it.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained", width_ratios=(1, 1.6))
    counts = sorted(table.index)
    for position, k in enumerate(counts):
        row = table.loc[k]
        left.errorbar(-row.behind, position, xerr=row.behind_se, fmt="o", color=f"C{position}", capsize=3)
        right.scatter(x, loos[k].pareto_k, s=10, color=f"C{position}", label=f"{k} expert{'s' if k > 1 else ''}")
    left.axvline(0, color="black", linewidth=0.8, linestyle="--")
    left.set_yticks(range(len(counts)), [str(k) for k in counts])
    left.set(xlabel="elpd minus that of the best (nats, ± s.e.)", ylabel="number of experts", title="leave-one-out")
    left.margins(y=0.3)
    limit = float(loos[counts[0]].good_k)
    right.axhline(limit, color="black", linewidth=0.8, linestyle="--")
    right.text(0, limit, "above the line: the estimate cannot be trusted", fontsize=7, va="top")
    right.set(xlabel="x of the datapoint left out", ylabel="Pareto k", title="is importance sampling up to it?")
    right.legend(frameon=False, fontsize=8)
    return figure
