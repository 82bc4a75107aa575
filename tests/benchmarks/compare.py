"""``python -m tests.benchmarks.compare A.json B.json``: what became slower, or faster, from A to B beyond the noise."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.runs import load
from tests.benchmarks.table import in_words, least

FLOOR = 0.05  # a change that is noise on every machine


def noise(record: Mapping[str, Any]) -> float:
    """How far a quarter of the rounds is above the least: what the least itself may be off by, and more."""
    return float(record["stats"]["q1"] / record["stats"]["min"] - 1.0)


def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[float, float]:
    """:returns: the relative change of the least time, and how large one has to be to count."""
    relative = after["stats"]["min"] / before["stats"]["min"] - 1.0
    return relative, max(FLOOR, 2.0 * max(noise(before), noise(after)))


def main(first: str, second: str) -> int:
    """:returns: 1 where something of ours became slower, else 0."""
    (old, cpu), (new, other) = load(Path(first)), load(Path(second))
    before, after = least(old), least(new)
    table = Table(title=f"{first} → {second}" + ("" if cpu == other else f"\nother processors: {cpu}, {other}"))
    for column in ("what", "side", "before", "after", "change", "noise", ""):
        table.add_column(column, justify="left" if column in ("what", "side", "") else "right")
    slower = 0
    for key in before.keys() & after.keys():
        relative, limit = change(before[key], after[key])
        word = "slower" if relative > limit else "faster" if relative < -limit / (1 + limit) else ""
        slower += word == "slower" and key[1] == "ours"
        if word:
            times = in_words(before[key]["stats"]["min"]), in_words(after[key]["stats"]["min"])
            table.add_row(*key, *times, f"{100 * relative:+.0f} %", f"{100 * limit:.0f} %", word)
    console = Console(width=160)
    if table.row_count:
        console.print(table)
    else:
        console.print(f"nothing changed beyond the noise in {len(before.keys() & after.keys())} times")
    for key in sorted(before.keys() ^ after.keys()):
        console.print(f"only in {first if key in before else second}: {key[0]}, {key[1]}")
    return int(slower > 0)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give two files that make bench wrote: python -m tests.benchmarks.compare A.json B.json")
    raise SystemExit(main(*sys.argv[1:]))
