"""How long a fresh process waits for its first result, with an empty cache of kernels and with a full one.

``python -m tests.benchmarks.first_call`` prints processor time, which other programs do not prolong. It begins when
torch, pyro and prob_moe are imported, whose own times stand below the table. Kernels are compiled on one thread.
"""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

EMPTY_GOAL, FULL_GOAL, IMPORT_GOAL = 10.0, 2.0, 2.0  # seconds

PROGRAM = """
import time
start = time.process_time()
import pyro, torch
peers = time.process_time()
import prob_moe
from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.numerics import minimum_variance_marginals, solve_assignment, sparse_transport
imported = time.process_time()
logits = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))

def draw(distribution):
    distribution.importance_weights(distribution.sample())

{call}
print(peers - start, imported - peers, time.process_time() - imported)
"""

CALLS = {
    "IndependentRouting, a draw": "draw(IndependentRouting(logits))",
    "CapacitySkip, a draw": "draw(CapacitySkip(logits, capacity=8))",
    "CapacitySkip, a draw, 2 experts": "draw(CapacitySkip(logits, capacity=16, num_selected=2))",
    "DependentRounding, a draw": "draw(DependentRounding(logits, capacity=8))",
    "DependentRounding, a draw, 2 experts": "draw(DependentRounding(logits, capacity=16, num_selected=2))",
    "GumbelMatching, a draw": "draw(GumbelMatching(logits, capacity=8))",
    "GumbelMatching, log P": "d = GumbelMatching(logits, capacity=8); d.log_prob(d.sample())",
    "solve_assignment, 2 experts": "solve_assignment(logits, 16, num_selected=2)",
    "sparse_transport": "sparse_transport(logits, 2)",
}


def cpu() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def seconds(call: str, cache: str) -> tuple[float, float, float]:
    """Processor time of a fresh process: torch and pyro, prob_moe beyond them, and the call."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    program = [sys.executable, "-c", PROGRAM.format(call=call)]
    result = subprocess.run(program, env=environment, capture_output=True, text=True, check=True)
    peers, ours, first = map(float, result.stdout.split())
    return peers, ours, first


def judged(value: float, goal: float) -> str:
    return f"{value:.1f}" if value < goal else f"{value:.1f} (missed)"


def main() -> None:
    table = Table(title=f"Seconds to the first result, {cpu()}")
    for column in ("first call", "empty cache", "goal", "full cache", "goal"):
        table.add_column(column, justify="right")
    all_peers, all_ours = [], []
    for name, call in CALLS.items():
        with tempfile.TemporaryDirectory() as cache:
            (peers, ours, empty), (_, _, full) = seconds(call, cache), seconds(call, cache)
        all_peers.append(peers)
        all_ours.append(ours)
        row = judged(empty, EMPTY_GOAL), f"< {EMPTY_GOAL:g}", judged(full, FULL_GOAL), f"< {FULL_GOAL:g}"
        table.add_row(name, *row)
    console = Console(width=120)
    console.print(table)
    console.print(
        f"import torch, pyro: {min(all_peers):.1f}; import prob_moe beyond them: {judged(min(all_ours), IMPORT_GOAL)} "
        f"(goal < {IMPORT_GOAL:g})"
    )


if __name__ == "__main__":
    main()
