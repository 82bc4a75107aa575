"""What the pictures of a report share: sizes, the colors of experts, lines of several seeds."""

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TABLEAU_COLORS, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from inference import plots  # noqa: F401  (sets the style of all pictures)

#: inches: what fits a page
WIDTH = 9.0
DROPPED = "0.75"
#: points of a line that is read with the eye
BINS = 120
#: entries of a legend that can be told apart
LEGIBLE = 16


def expert_colors(num_experts: int) -> list[str]:
    """A color for each, the same in all pictures."""
    # Gray is for what was dropped.
    distinct = [color for color in TABLEAU_COLORS.values() if color != TABLEAU_COLORS["tab:gray"]]
    if num_experts <= len(distinct):
        return distinct[:num_experts]
    # Darker than the map is, so that white letters can be read on all of it.
    return [
        to_hex(0.85 * np.array(color[:3]))
        for color in plt.get_cmap("nipy_spectral")(np.linspace(0.08, 0.95, num_experts))
    ]


def expert_legend(figure: Figure, num_experts: int, *, dropped: bool = False) -> None:
    """Name the colors at the right of a figure, if they are few."""
    handles = [Patch(color=color, label=f"expert {j}") for j, color in enumerate(expert_colors(num_experts))]
    if dropped:
        handles.append(Patch(color=DROPPED, label="dropped"))
    if num_experts <= LEGIBLE:
        figure.legend(handles=handles[::-1], loc="outside right upper", frameon=False, fontsize=8, handlelength=1)


def panel_grid(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """As many panels as asked for, in rows of at most three, over the steps."""
    columns = 2 if panels in (2, 4) else min(panels, 3)
    rows = -(-panels // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[panels:]:
        axis.set_visible(False)
    for axis in axes.flat[:panels]:
        axis.set_xlabel("step")
    return figure, list(axes.flat[:panels])


def lines_by_seed(
    axis: Axes, table: pd.DataFrame, column: str, color: str, label: str, at_most: int | None = None
) -> None:
    """A faint line a seed and their mean; a mark where there is one point only."""
    seeds = {seed: rows.dropna(subset=column) for seed, rows in table.groupby("seed")}
    if len(seeds) > 1:
        for rows in seeds.values():
            axis.plot(*_thinned(rows, column, at_most), color=color, alpha=0.3, linewidth=0.8)
    mean = table.groupby("step", as_index=False)[column].mean().dropna()
    marker = "o" if len(mean) == 1 else None
    axis.plot(*_thinned(mean, column, at_most), color=color, marker=marker, label=label)


def _thinned(rows: pd.DataFrame, column: str, at_most: int | None) -> tuple[np.ndarray, np.ndarray]:
    at, values = rows.step.to_numpy(), rows[column].to_numpy()
    return binned(at, values, at_most) if at_most is not None else (at, values)


def binned(at: np.ndarray, values: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, np.ndarray]:
    """Means over stretches of neighbouring steps, as many as there are bins at most."""
    stretches = np.array_split(np.arange(len(at)), min(bins, len(at)))
    return np.array([at[s].mean() for s in stretches]), np.array([values[s].mean(0) for s in stretches])
