"""One table of a run of the benchmarks: what, ours, peer, ratio, goal, and whether it holds."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from tests.benchmarks.case import A_PART, SAME_RESULT


@dataclass(frozen=True)
class Row:
    """
    One of ours beside one peer.

    :param ours: seconds, the least of all rounds and turns; :param theirs: likewise, None where there is no peer.
    :param goal: see :class:`~tests.benchmarks.case.Case`.
    :param deviation: of the two results, None where they are not compared.
    """

    what: str
    peer: str
    ours: float
    theirs: float | None
    goal: str
    kind: str
    work: str
    threads: int
    deviation: float | None
    tolerance: float

    @property
    def same(self) -> bool:
        return self.kind != SAME_RESULT or (self.deviation is not None and self.deviation <= self.tolerance)

    @property
    def ratio(self) -> float | None:
        """Times faster than the peer, or its times; None where the results differ."""
        if self.theirs is None or not self.same:
            return None
        return self.ours / self.theirs if self.in_its_times else self.theirs / self.ours

    @property
    def in_its_times(self) -> bool:
        """Whether the ratio is of our time to the peer's: with a goal ``<=``, and for what has the peer as a part."""
        return self.goal.startswith("<=") or self.kind == A_PART

    @property
    def holds(self) -> bool | None:
        if self.ratio is None or not self.goal:
            return None
        sign, number = self.goal.split()
        return self.ratio <= float(number) if sign == "<=" else self.ratio >= float(number)


def least(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Mapping[str, Any]]:
    """:returns: by name of the case and side the record of the turn with the least time, pytest-benchmark's JSON."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for record in records:
        key = record["extra_info"]["what"], record["extra_info"]["side"]
        if key not in found or record["stats"]["min"] < found[key]["stats"]["min"]:
            found[key] = record
    return found


def rows(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """:returns: the rows of a run; a case without a peer has one."""
    best = least(records)
    found = []
    for (what, side), record in best.items():
        peers = [name for case, name in best if case == what and name != "ours"]
        if (side == "ours") == bool(peers) or (what, "ours") not in best:
            continue
        info = record["extra_info"]
        found.append(
            Row(
                what,
                "" if side == "ours" else side,
                best[what, "ours"]["stats"]["min"],
                None if side == "ours" else record["stats"]["min"],
                info["goal"],
                info["kind"],
                info["work"],
                info["threads"],
                info.get("deviation"),
                info["tolerance"],
            )
        )
    return found


def table(found: list[Row], cpu: str) -> Table:
    """As it is printed after a run."""
    printed = Table(
        title=f"least times of one run; {cpu}", caption="a ratio x: so many times faster; ×: times its time"
    )
    for column in ("what", "threads", "ours", "peer", "its time", "ratio", "goal", "", "why comparable"):
        printed.add_column(column, justify="right" if column in ("threads", "ours", "its time", "ratio") else "left")
    for row in found:
        printed.add_row(
            row.what,
            str(row.threads),
            in_words(row.ours),
            row.peer,
            "" if row.theirs is None else in_words(row.theirs),
            told_ratio(row),
            row.goal,
            verdict(row),
            _why(row),
        )
    return printed


def in_words(seconds: float) -> str:
    """Three digits and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            break
    return f"{seconds / size:.3g} {unit}"


def verdict(row: Row) -> str:
    """Whether the goal holds, in a word; none where there is no goal."""
    return {True: "holds", False: "FAILS", None: ""}[row.holds]


def told_ratio(row: Row) -> str:
    """Three digits: ``20.9 x`` for so many times faster than the peer, ``3.52×`` for so many times its time."""
    if row.ratio is None:
        return "" if row.theirs is None else "none"
    digits = max(0, 2 - math.floor(math.log10(row.ratio))) if row.ratio > 0 else 2
    return f"{row.ratio:.{min(digits, 3)}f}" + ("×" if row.in_its_times else " x")


def _why(row: Row) -> str:
    if row.theirs is None:
        return ""
    if row.kind == SAME_RESULT:
        if row.deviation is None:
            return "results not compared"
        return f"{'same' if row.same else 'OTHER'} result: off by {row.deviation:.0e}"
    return f"{row.kind}: {row.work}" if row.work else row.kind
