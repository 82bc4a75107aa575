"""Pictures of importance weights."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from inference.figure_style import BINS, lines_by_seed, panel_grid
from inference.show.run_figures import layer_names, sites_of


def weights(steps: pd.DataFrame, drawn: np.ndarray | None) -> Figure:
    """
    Effective sample size over the steps, and the weights of one draw.

    :param drawn: importance weights, (n,), or None where there is no model to draw from.
    """
    looks = steps.dropna(subset="weight_ess")
    sites = sites_of(looks)
    figure, axes = panel_grid(2 if drawn is not None else 1, height=3.2)
    if len(sites) > 1:
        for color, (site, label) in enumerate(zip(sites, layer_names(sites)), start=1):
            lines_by_seed(axes[0], looks, f"weight_ess/{site}", f"C{color}", label, at_most=BINS)
    label = "product over the layers" if len(sites) > 1 else ""
    lines_by_seed(axes[0], looks, "weight_ess", "C0", label, at_most=BINS)
    axes[0].axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes[0].set(title="training batches", ylabel="effective sample size (share of n)", ylim=(0, 1.05))
    if len(sites) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    if drawn is not None:
        _histogram(axes[1], drawn)
    return figure


def _histogram(axis: Axes, drawn: np.ndarray) -> None:
    """On a logarithmic axis: weights are ratios. Zeros, of dropped datapoints, have a bar of their own at the left."""
    positive = drawn[drawn > 0]
    low, high = positive.min(initial=1.0), positive.max(initial=1.0)
    # Whole bins around 1, a twentieth of a decade at least, so that equal weights are one bar.
    width = max(0.05, np.log10(high / low) / 30)
    edges = 10 ** (width * np.arange(np.floor(np.log10(low) / width - 0.5), np.ceil(np.log10(high) / width + 0.5) + 1))
    edges = edges * 10 ** (width / 2)
    axis.hist(positive, edges, color="C0", edgecolor="white", linewidth=0.4)
    axis.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axis.set(xscale="log", xlabel="importance weight (dashed: 1)", ylabel="datapoints")
    ratio = high / low
    subs = (1, 1.5, 2, 3, 5, 7) if ratio < 5 else (1, 2, 5) if ratio < 100 else (1,)
    axis.xaxis.set_major_locator(LogLocator(subs=subs))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda weight, _: f"{weight:g}" if weight >= edges[0] else ""))
    axis.xaxis.set_minor_formatter(NullFormatter())
    zeros = int((drawn == 0).sum())
    if zeros:
        place = edges[0] * 10 ** (-2.5 * width)
        axis.bar(place, zeros, width=place * (10 ** (width / 2) - 10 ** (-width / 2)), color="0.6")
        axis.annotate("0: dropped", (place, zeros), ha="center", va="bottom", fontsize=8, color="0.35")
        axis.set_xlim(left=place * 10 ** (-3 * width))
    axis.set_title(f"one draw, {len(drawn)} weights on the test set")
