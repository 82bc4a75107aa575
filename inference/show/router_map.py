"""Where in the space of its inputs the router sends what."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor

from inference.figure_style import DROPPED, WIDTH, expert_colors, expert_legend
from inference.tasks import Model
from prob_moe.diagnostics import RoutingRecorder
from prob_moe.mixture import MixtureOfExperts

#: letters that a datapoint can be drawn as
LETTERS = 2


@dataclass(frozen=True)
class Served:
    """
    Datapoints with the expert that each was served by.

    :param points: (n, d).
    :param experts: long (n,), negative where dropped.
    :param num_experts: of the layer.
    :param groups: what each is shown as: a short name.
    """

    points: np.ndarray
    experts: np.ndarray
    num_experts: int
    groups: list[str]


@torch.no_grad()
def first_logits(model: Model, x: Tensor) -> Tensor:
    """The router of the first layer: (n, d) -> (n, k)."""
    with RoutingRecorder() as recorder:
        model(x)
    routing, _ = next(iter(recorder.draws.values()))
    return routing.logits.reshape(-1, routing.num_experts)


def along_a_line(model: Model, x: Tensor, y: Tensor, served: Served) -> Figure:
    """
    For one input: router probabilities above, the data below, with what every expert predicts where that is a number.

    :param x: (n, 1).
    """
    grid = torch.linspace(x.min().item(), x.max().item(), 300, dtype=x.dtype)[:, None]
    probabilities = first_logits(model, grid).softmax(-1).numpy()
    colors = expert_colors(served.num_experts)
    real = y.is_floating_point() and y.dim() == 1
    figure, axes = plt.subplots(2 if real else 1, 1, figsize=(WIDTH, 5.6 if real else 3), sharex=True, squeeze=False)
    figure.set_layout_engine("constrained")
    top, bottom = axes[0, 0], axes[-1, 0]
    for expert, color in enumerate(colors):
        top.plot(grid[:, 0], probabilities[:, expert], color=color, label=f"expert {expert}")
    top.set(ylabel="router probability", ylim=(-0.02, 1.02))
    if real:
        _scatter(bottom, np.column_stack([served.points[:, 0], y.numpy()]), served, letters=False)
        if isinstance(model, MixtureOfExperts):
            with torch.no_grad():
                outputs = model.experts.dense(grid).squeeze(-1)
            limits = bottom.get_ylim()
            for expert, color in enumerate(colors if outputs.dim() == 2 else []):
                bottom.plot(grid[:, 0], outputs[:, expert], color=color, linewidth=1)
            bottom.set_ylim(limits)
        bottom.set_ylabel("y (line: expert's output)")
    bottom.set_xlabel("x")
    _legend(figure, served)
    return figure


def over_the_plane(model: Model, x: Tensor, served: Served) -> Figure:
    """
    For two inputs: every place has the experts' colors, mixed by their probabilities; the data on top.

    :param x: (n, 2).
    """
    low, high = x.amin(0), x.amax(0)
    margin = 0.05 * (high - low)
    low, high = low - margin, high + margin
    across, up = (torch.linspace(low[i].item(), high[i].item(), 160, dtype=x.dtype) for i in (0, 1))
    grid = torch.cartesian_prod(up, across).flip(-1)
    probabilities = first_logits(model, grid).softmax(-1).double().numpy()
    colors = np.array([to_rgb(color) for color in expert_colors(served.num_experts)])
    # Paler than the datapoints on top.
    image = 1 - 0.6 * (1 - probabilities @ colors)
    figure, axis = plt.subplots(figsize=(WIDTH, 5.6), layout="constrained")
    extent = (across[0].item(), across[-1].item(), up[0].item(), up[-1].item())
    axis.imshow(image.reshape(len(up), len(across), 3).clip(0, 1), origin="lower", extent=extent, aspect="auto")
    _scatter(axis, served.points, served)
    axis.set(xlabel="first input", ylabel="second input")
    _legend(figure, served)
    return figure


def principal_components(served: Served, what: str) -> Figure:
    """
    For more inputs: the plane in which they vary most, every datapoint counting the same whatever its distance, so that
    an outlier does not turn the plane.

    Source: Locantore et al. (1999), "Robust principal component analysis for functional data" (spherical components).

    :param what: of which the components are.
    """
    centered = served.points - np.median(served.points, 0)
    directions = centered / np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    # A plane has two axes, also where there is only one to vary along.
    axes = np.zeros((2, centered.shape[1]))
    found = PCA(min(2, *centered.shape), svd_solver="full").fit(directions).components_
    axes[: len(found)] = found
    figure, axis = plt.subplots(figsize=(WIDTH, 6), layout="constrained")
    _scatter(axis, centered @ axes.T, served)
    axis.set(xlabel=f"first principal component of {what}", ylabel=f"second principal component of {what}")
    _legend(figure, served)
    return figure


def mean_images(served: Served, shape: tuple[int, int]) -> Figure:
    """The mean of what every expert was served, as a picture of the given height and width."""
    columns = min(served.num_experts, 8)
    rows = -(-served.num_experts // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, 1.7 * rows + 0.7), squeeze=False, layout="constrained")
    means = [served.points[served.experts == expert] for expert in range(served.num_experts)]
    images = [mean.mean(0).reshape(shape) if len(mean) else np.zeros(shape) for mean in means]
    # A rare pixel of an expert with few datapoints must not pale all others.
    limit = np.quantile(np.abs(images), 0.98) or 1.0
    for axis in axes.flat:
        axis.set_axis_off()
    for expert, (axis, image) in enumerate(zip(axes.flat, images)):
        shown = axis.imshow(image, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(f"expert {expert}: {len(means[expert])}", fontsize=9)
    bar = figure.colorbar(shown, ax=axes.ravel().tolist(), location="bottom", shrink=0.5, aspect=40, extend="both")
    bar.set_label("mean input, in the units of the model's input")
    return figure


def _scatter(axis: Axes, place: np.ndarray, served: Served, letters: bool = True) -> None:
    """Datapoints in the color of their expert, as the letters of their group where these are few."""
    colors = np.array([*expert_colors(served.num_experts), DROPPED])
    color_of = np.where(served.experts >= 0, served.experts, served.num_experts)
    groups = np.array(served.groups)
    short = letters and all(0 < len(name) <= LETTERS for name in served.groups)
    if short:
        for name in np.unique(groups):
            across, up = place[groups == name].T
            axis.scatter(across, up, s=42, c=colors[color_of[groups == name]], marker=f"${name}$", linewidths=0.3)
        return
    # Tokens that are the same come to lie on one another: their disc is as large as they are many.
    distinct, counts = np.unique(np.column_stack([place.round(6), color_of]), axis=0, return_counts=True)
    across, up, kind = distinct.T
    axis.scatter(across, up, s=14 * counts, c=colors[kind.astype(int)], alpha=0.8, linewidths=0)


def _legend(figure: Figure, served: Served) -> None:
    expert_legend(figure, served.num_experts, dropped=bool((served.experts < 0).any()))
