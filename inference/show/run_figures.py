"""Pictures of what happened in training, from the tables of a run."""

import itertools
import math
import textwrap

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from inference.figure_style import BINS, DROPPED, WIDTH, binned, expert_colors, expert_legend, lines_by_seed, panel_grid

#: metrics of the routing among those of an epoch, by what their names begin with
ROUTING = ("max/mean load", "dead experts", "usage perplexity", "drop rate")
#: how the name of a number begins that a metric is compared with, and that training does not change
REFERENCE = "reference: "
#: columns of ``epochs.csv`` that are not of the validation set
OF_TRAINING = ("epoch", "seed", "loss", "load", "drops")


def sites_of(steps: pd.DataFrame) -> list[str]:
    """The assignment sites in the order of the layers, from the columns ``load/SITE/EXPERT``."""
    return list(dict.fromkeys(name[len("load/") :].rpartition("/")[0] for name in steps if name.startswith("load/")))


def load_columns(steps: pd.DataFrame, site: str) -> list[str]:
    """The columns with the loads of the experts of a site, in their order."""
    return [name for name in steps if name.startswith(f"load/{site}/") and name.count("/") == site.count("/") + 2]


def layer_names(sites: list[str]) -> list[str]:
    return [f"layer {layer} (site {site})" if len(sites) > 1 else "" for layer, site in enumerate(sites, start=1)]


def learning_curves(steps: pd.DataFrame, epochs: pd.DataFrame) -> Figure:
    """Training loss by step and epoch, and what was measured on the validation set after every epoch."""
    ends = steps.groupby(["seed", "epoch"], as_index=False).step.max()
    by_epoch = epochs.merge(ends, on=["seed", "epoch"]) if len(epochs) else pd.DataFrame()
    metrics = [name for name in epochs if name not in OF_TRAINING and not name.startswith((*ROUTING, REFERENCE))]
    panels: dict[str, list[str]] = {}
    for name in metrics:
        panels.setdefault(name.partition(",")[0], []).append(name)
    figure, axes = panel_grid(1 + len(panels), height=2.9)
    for _, rows in steps.groupby("seed"):
        axes[0].plot(rows.step, rows.loss, color="C0", alpha=0.5 if steps.seed.nunique() == 1 else 0.25, linewidth=0.6)
    if len(by_epoch):
        lines_by_seed(axes[0], by_epoch, "loss", "C0", "mean of an epoch")
    # A density can exceed 1, so a loss can be negative.
    axes[0].set(yscale="log" if (steps.loss > 0).all() else "symlog", ylabel="nats per datapoint")
    axes[0].set_title("training loss: minus the objective")
    for axis, (title, names) in zip(axes[1:], panels.items()):
        for index, name in enumerate(names):
            lines_by_seed(axis, by_epoch, name, f"C{1 + index}", name.partition(", ")[2] or name)
        axis.set_title(textwrap.fill(f"validation: {title}", 32))
        axis.set_ylabel(textwrap.fill(title, 32) + (" (nats)" if "(nats)" in names[0] else ""))
    references = [name for name in epochs if name.startswith(REFERENCE)]
    for name, style in zip(references, itertools.cycle(("--", ":", "-.", (0, (1, 4))))):
        label = textwrap.fill(name.removeprefix(REFERENCE), 28)
        axes[-len(panels)].axhline(epochs[name].mean(), color="0.3", linewidth=1.1, linestyle=style, label=label)
    for axis in axes[1:]:
        axis.legend(frameon=False, fontsize=8)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def loads(steps: pd.DataFrame) -> Figure:
    """
    Share of a training batch that every expert processed, stacked, for every layer.

    :param steps: of one seed.
    """
    looks = steps.dropna(subset="max_mean_load")
    sites = sites_of(looks)
    figure, axes = plt.subplots(1, len(sites), figsize=(WIDTH, 3.4), sharey=True, squeeze=False, layout="constrained")
    for axis, site, title in zip(axes[0], sites, layer_names(sites)):
        columns = load_columns(looks, site)
        counts = looks[columns].to_numpy()
        # The loads are of who was processed; the rest of the batch was dropped.
        processed = 1 - looks[f"drop_rate/{site}"].to_numpy()
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1) * processed[:, None]
        at, shares = binned(looks.step.to_numpy(), np.column_stack([shares, 1 - processed]))
        colors = [*expert_colors(len(columns)), DROPPED]
        axis.stackplot(at, shares.T, colors=colors, edgecolor="white", linewidth=0.3)
        axis.set(xlabel="step", ylim=(0, 1), xlim=(at[0], at[-1]) if len(at) > 1 else None, title=title)
    axes[0, 0].set_ylabel("share of the batch")
    expert_legend(figure, len(columns), dropped=looks.drop_rate.max() > 0)
    return figure


def routing_health(steps: pd.DataFrame) -> Figure:
    """Max/mean load, drop rate, router entropy and experts in effective use over the steps; one line per layer."""
    looks = steps.dropna(subset="max_mean_load")
    sites = sites_of(looks)
    figure, axes = panel_grid(4, height=2.6)
    for color, (site, label) in enumerate(zip(sites, layer_names(sites))):
        for axis, name in zip(axes, ("max_mean_load", "drop_rate", "router_entropy", "usage_perplexity")):
            lines_by_seed(axis, looks, f"{name}/{site}", f"C{color}", label, at_most=BINS)
    experts = [len(load_columns(looks, site)) for site in sites]
    axes[0].axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes[0].set(title="load of the fullest expert, relative to balance", ylabel="max/mean load")
    axes[0].set_ylim(min(0.95, axes[0].get_ylim()[0]), max(1.5, axes[0].get_ylim()[1]))
    axes[1].set(
        title="dropped datapoints",
        ylabel="drop rate (share of n)",
        ylim=(-0.03 * (most := max(0.1, axes[1].get_ylim()[1])), most),
    )
    axes[2].axhline(math.log(max(experts)), color="black", linewidth=0.8, linestyle="--")
    axes[2].set(title="router entropy (dashed: log k, indifferent)", ylabel="nats", ylim=(0, None))
    axes[3].axhline(max(experts), color="black", linewidth=0.8, linestyle="--")
    axes[3].set(
        title="experts in effective use (dashed: all)", ylabel="usage perplexity", ylim=(0, 1.06 * max(experts))
    )
    if len(sites) > 1:
        axes[0].legend(frameon=False, fontsize=8)
    return figure
