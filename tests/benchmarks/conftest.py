"""`make bench`: after pytest-benchmark's own table, print every side's time as a multiple of the reference's.

A benchmark sets ``benchmark.group`` to the case and ``benchmark.extra_info["side"]`` to ``"ours"`` or the peer's name;
``benchmark.extra_info["reference"]`` is the side that the others are divided by, ours where it is not given, and
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
    groups: dict[str, dict] = defaultdict(dict)
    bars, references = {}, {}
    for bench in getattr(session, "benchmarks", []):
        side = bench.extra_info.get("side")
        if side is not None and bench.stats.rounds:
            groups[bench.group][side] = min(bench.stats.min, groups[bench.group].get(side, math.inf))
            bars[bench.group, side] = bench.extra_info.get("bar", "")
            references[bench.group] = bench.extra_info.get("reference", "ours")
    if not groups:
        return
    table = Table(title=f"least times of one run, {torch.get_num_threads()} torch threads")
    for column in ("case", "side", "milliseconds", "side / reference", "bar"):
        table.add_column(column, justify="right" if column in ("milliseconds", "side / reference") else "left")
    for group, sides in groups.items():
        for side, seconds in sides.items():
            reference = sides.get(references[group])
            ratio = "" if reference is None else f"{seconds / reference:.2f}"
            table.add_row(group, side, f"{1e3 * seconds:.2f}", ratio, bars[group, side])
    Console(width=140).print(table)
