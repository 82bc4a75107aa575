"""``python -m tests.benchmarks.growth RUN.json FOLDER``: how times grow with n, k and m, one picture for each."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from tests.benchmarks.runs import load
from tests.benchmarks.table import least

NAMES = {"n": "datapoints n", "k": "experts k", "m": "experts per datapoint m"}
Curves = dict[tuple[str, str], dict[str, list[tuple[int, float]]]]


def curves(records: Iterable[Mapping[str, Any]]) -> Curves:
    """:returns: by axis and curve, by side the points (size, seconds), ascending."""
    found: Curves = defaultdict(lambda: defaultdict(list))
    for (_, side), record in least(records).items():
        info = record["extra_info"]
        if info["axis"] is not None:
            axis, size = info["axis"]
            found[axis, info["curve"]][side].append((size, record["stats"]["min"]))
    return {key: {side: sorted(points) for side, points in sides.items()} for key, sides in found.items()}


def draw(axis: str, name: str, sides: dict[str, list[tuple[int, float]]], cpu: str) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for side, points in sides.items():
        sizes, seconds = zip(*points)
        axes.loglog(sizes, [1e3 * value for value in seconds], "o-" if side == "ours" else "s--", label=side)
    sizes, seconds = zip(*sides["ours"])
    straight = [1e3 * seconds[0] * size / sizes[0] for size in sizes]
    axes.loglog(sizes, straight, ":", color="grey", label=f"proportional to {axis}")
    axes.set(xlabel=NAMES[axis], ylabel="milliseconds", title=f"{name}\n{cpu}", xticks=sizes)
    axes.set_xticklabels([f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False)
    return figure


def main(run: str, folder: str) -> None:
    records, cpu = load(Path(run))
    found = curves(records)
    if not found:
        raise SystemExit(f"{run} holds no growth: run make bench whole")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for (axis, name), sides in found.items():
        path = Path(folder) / f"growth-{axis}-{name.split(',')[0].replace(' ', '-')}.png"
        draw(axis, name, sides, cpu).savefig(path, dpi=150)
        print(path)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give a file that make bench wrote and a folder: python -m tests.benchmarks.growth RUN FOLDER")
    main(*sys.argv[1:])
