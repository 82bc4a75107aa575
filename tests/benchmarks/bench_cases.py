"""`make bench`: every case, its sides in turns, so that a change of the machine's pace meets all of them."""

import functools
import os
import re
import time
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from tests.benchmarks import assignment, draws, experts, parallel, peers, steps
from tests.benchmarks.case import Case, Side

TURNS = 3
FULL = os.environ.get("PROB_MOE_BENCH") == "full"
CASES = [
    case
    for module in (assignment, draws, experts, steps, peers, parallel)
    for case in module.CASES
    if FULL or not case.full
]
RUNS = [(case, turn, side) for case in CASES for turn in range(TURNS) for side in case.sides]


def spelling(case: Case, turn: int, side: str) -> str:
    """As ``-k`` can take it."""
    return re.sub(r"[^a-z0-9]+", "-", f"{case.what} {side} {turn}".lower().replace("×", "x"))


@functools.lru_cache(maxsize=1)
def built(case: Case) -> dict[str, Side]:
    torch.manual_seed(0)
    return case.build()


@functools.lru_cache(maxsize=1)
def results(case: Case) -> dict[str, Any]:
    """What every side returns; its first call, too."""
    return {name: side() for name, side in built(case).items()}


@pytest.mark.parametrize(("case", "turn", "side"), RUNS, ids=[spelling(*run) for run in RUNS])
def test_case(benchmark: BenchmarkFixture, case: Case, turn: int, side: str) -> None:
    torch.set_num_threads(case.threads)
    if side not in built(case):
        pytest.skip(f"{side} is not installed")
    run, found = built(case)[side], results(case)
    benchmark.group = case.what
    benchmark.extra_info.update(
        what=case.what,
        side=side,
        goal=case.goals.get(side, ""),
        kind=case.kind,
        work=case.work,
        threads=case.threads,
        axis=case.axis,
        curve=case.curve,
        tolerance=case.tolerance,
    )
    if case.deviation is not None and side != "ours":
        benchmark.extra_info["deviation"] = case.deviation(found["ours"], found[side])
    start = time.perf_counter()
    run()
    once = max(time.perf_counter() - start, 1e-7)
    iterations = max(1, int(2e-3 / once))
    rounds = int(min(max(case.seconds / (once * iterations), 3), 100))
    benchmark.pedantic(run, rounds=rounds, iterations=iterations)
