"""Pictures of a fit."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor


def expert_use(usage: list[Tensor], group_label: str, group_names: list[str], title: str) -> Figure:
    """
    A heat map for every layer: which share of a group's datapoints every expert processes.

    :param usage: (groups, k + 1) for every layer, the last column for what was dropped.
    """
    figure, axes = plt.subplots(
        1,
        len(usage),
        figsize=(1.5 + 4 * len(usage), max(3.2, 1.6 + 0.32 * len(group_names))),
        squeeze=False,
        layout="constrained",
    )
    for layer, (axis, shares) in enumerate(zip(axes[0], usage), start=1):
        image = _heat_map(axis, shares.numpy(), group_names)
        axis.set(xlabel="expert", ylabel=group_label)
        if len(usage) > 1:
            axis.set_title(f"layer {layer}")
    figure.colorbar(image, ax=axes[0].tolist(), label=f"share of the {group_label}'s datapoints")
    figure.suptitle(title, fontsize=9)
    return figure


def _heat_map(axis: Axes, shares: np.ndarray, group_names: list[str]) -> object:
    names = [str(expert) for expert in range(shares.shape[1] - 1)]
    if shares[:, -1].any():
        names.append("dropped")
    else:
        shares = shares[:, :-1]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(group_names)), group_names)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "white" if share > 0.6 else "black"
            axis.text(column, row, f"{100 * share:.0f} %", ha="center", va="center", fontsize=7, color=color)
    axis.spines[:].set_visible(False)
    return image


def training_curve(curve: pd.DataFrame, metric: str, title: str) -> Figure:
    """
    Loss, a validation metric, and load and drops in training, against the epoch; one faint line per seed, and the mean.

    :param metric: a column of the curve.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    _lines(axes[0], curve, "loss", "C0", "training")
    # A density can exceed 1, so a loss can be negative.
    scale = "log" if (curve.loss > 0).all() else "symlog"
    axes[0].set(title="training loss: minus the objective", ylabel="nats per datapoint", yscale=scale)
    _lines(axes[1], curve, metric, "C1", "validation")
    axes[1].set(title="validation", ylabel=metric)
    _lines(axes[2], curve, "load", "C2", "max/mean load")
    axes[2].set(title="training batches", ylabel="max/mean load", ylim=(0, None))
    drops = axes[2].twinx()
    drops.spines["right"].set_visible(True)
    _lines(drops, curve, "drops", "C3", "drop rate")
    drops.set(ylabel="drop rate", ylim=(0, 1))
    axes[2].legend(handles=[*axes[2].lines[-1:], *drops.lines[-1:]], frameon=False, loc="center right")
    for axis in axes:
        axis.set_xlabel("epoch")
    figure.suptitle(title, fontsize=9)
    return figure


def _lines(axis: Axes, curve: pd.DataFrame, column: str, color: str, label: str) -> None:
    by_seed = curve.pivot(index="epoch", columns="seed", values=column)
    if by_seed.shape[1] > 1:
        axis.plot(by_seed.index, by_seed, color=color, alpha=0.3, linewidth=0.8)
    marker = "o" if len(by_seed) == 1 else None
    axis.plot(by_seed.index, by_seed.mean(axis=1), color=color, marker=marker, label=label)
