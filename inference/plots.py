"""What all pictures share."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # pictures go to files; a notebook chooses its own backend first

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

__all__ = ["plt", "save"]

plt.rcParams.update({"figure.dpi": 120, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})


def save(figure: Figure, path: Path) -> None:
    """Write a picture and free it."""
    figure.savefig(path)
    plt.close(figure)
