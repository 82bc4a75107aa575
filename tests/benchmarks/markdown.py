"""``python -m tests.benchmarks.markdown RUN.json``: a run of the benchmarks as the table of the documentation."""

import sys
from pathlib import Path

from tests.benchmarks.runs import load
from tests.benchmarks.table import Row, in_words, rows, told_ratio, verdict

HEADER = ["what", "threads", "ours", "peer", "its time", "ratio", "goal"]


def line(row: Row) -> list[str]:
    theirs = "" if row.theirs is None else in_words(row.theirs)
    goal = row.goal.replace("<=", "≤").replace(">=", "≥")
    missed = ", missed" if row.holds is False else ""
    return [row.what, str(row.threads), in_words(row.ours), row.peer, theirs, told_ratio(row), goal + missed]


def main(run: str) -> None:
    records, cpu = load(Path(run))
    found = rows(records)
    for cells in (HEADER, ["---"] * len(HEADER), *map(line, found)):
        print("| " + " | ".join(cells) + " |")
    verdicts = [verdict(row) for row in found]
    print(f"\n{cpu}: {verdicts.count('holds')} goals hold, {verdicts.count('FAILS')} are missed.")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("give a file that make bench wrote: python -m tests.benchmarks.markdown RUN.json")
    main(sys.argv[1])
