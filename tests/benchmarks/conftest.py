"""`make bench`: after pytest-benchmark's own table, print every peer's time as a multiple of ours.

A benchmark sets ``benchmark.group`` to the case and ``benchmark.extra_info["side"]`` to ``"ours"`` or the peer's name;
``benchmark.extra_info["bar"]`` states what is aimed at. Each side counts with its least time of all
benchmarks that name it: noise only adds.
"""

import math
from collections import defaultdict

import pytest
import torch
from rich.console import Console
from rich.table import Table


def pytest_terminal_summary(config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    groups = defaultdict(dict)
    bars = {}
    for bench in getattr(session, "benchmarks", []):
        side = bench.extra_info.get("side")
        if side is not None and bench.stats.rounds:
            groups[bench.group][side] = min(bench.stats.min, groups[bench.group].get(side, math.inf))
            bars[bench.group, side] = bench.extra_info.get("bar", "")
    if not groups:
        return
    table = Table(title=f"least times of one run, {torch.get_num_threads()} torch threads")
    for column in ("case", "side", "milliseconds", "side / ours", "bar"):
        table.add_column(column, justify="right" if column in ("milliseconds", "side / ours") else "left")
    for group, sides in groups.items():
        for side, seconds in sides.items():
            ratio = f"{seconds / sides['ours']:.2f}" if "ours" in sides else ""
            table.add_row(group, side, f"{1e3 * seconds:.2f}", ratio, bars[group, side])
    Console(width=140).print(table)
