"""Pictures of a study."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # pictures go to files; a notebook chooses its own backend first

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from inference.study import ArmResult
from models.piecewise import PiecewiseData, piecewise_mean, piecewise_nll

plt.rcParams.update({"figure.dpi": 120, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})


def learning_curves(results: list[ArmResult], data: PiecewiseData, break_at: float) -> Figure:
    """Median NLL over seeds with the band between the quartiles, against the step; biased twins are dashed."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharex=True, sharey=True, layout="constrained")
    truth = float(piecewise_nll(data, break_at).mean())
    for index, result in enumerate(results):
        unbiased = result.arm.weighted
        bands = result.curve.groupby("step").nll.quantile([0.25, 0.5, 0.75]).unstack()
        axis = axes[0] if unbiased else axes[1]
        axis.plot(bands.index, bands[0.5], color=f"C{index}", label=result.arm.name)
        axis.fill_between(bands.index, bands[0.25], bands[0.75], color=f"C{index}", alpha=0.12, linewidth=0)
    exact = results[0].curve.groupby("step").nll.median()
    axes[1].plot(exact.index, exact, color="C0", linestyle=":", label="exact gradient (for reference)")
    for axis, title in zip(axes, ("unbiased", "biased twins")):
        axis.axhline(truth, color="black", linewidth=0.8, linestyle="--", label="true process")
        axis.set(title=title, xlabel="step", yscale="symlog", ylim=(truth - 0.2, None))
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("NLL of the mixture, nats per datapoint\n(median and quartiles over seeds)")
    return figure


def fits(results: list[ArmResult], data: PiecewiseData, break_at: float) -> Figure:
    """The first seed's data with each arm's two lines, their width in proportion to the router's probability."""
    columns = 4
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(11, 2.7 * rows), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, result in zip(axes.flat, results):
        _fit(axis, result, data, break_at)
    for axis in axes.flat[len(results) :]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, len(results) - columns) : len(results)]:
        axis.set_xlabel("x")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("y")
    handles = [
        Line2D([], [], linestyle="", marker="o", color="0.6", label="data of the first seed"),
        Line2D([], [], linestyle="--", color="black", label="true means"),
        *(Line2D([], [], linewidth=4, color=f"C{j}", label=f"expert {j} (width: router probability)") for j in (0, 1)),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _fit(axis: Axes, result: ArmResult, data: PiecewiseData, break_at: float) -> None:
    axis.scatter(data.x[0, :, 0], data.y[0], s=6, color="0.6")
    grid = torch.linspace(0, 1, 200)
    axis.plot(grid, piecewise_mean(grid, break_at), color="black", linewidth=0.8, linestyle="--")
    with torch.no_grad():
        x = grid[:, None].expand(data.x.shape[0], -1, -1)
        lines = result.mixture.experts.dense(x)[0, :, :, 0]
        p = result.mixture.router(x).softmax(-1)[0]
    for j in range(lines.shape[-1]):
        # Where the router never goes, an expert's line means nothing: it fades.
        axis.scatter(grid, lines[:, j], s=9 * np.asarray(p[:, j]), color=f"C{j}")
    axis.set(ylim=(-0.8, 1.6))
    axis.set_title(f"{result.arm.name}\n{int(result.solved.sum())} of {len(result.solved)} seeds solved", fontsize=9)


def save(figure: Figure, path: Path) -> None:
    """Write a picture and free it."""
    figure.savefig(path)
    plt.close(figure)
