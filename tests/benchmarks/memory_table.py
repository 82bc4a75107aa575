"""How many bytes a training step needs at its peak, beside a dense layer and one-hot dispatch, and how many a large
assignment: ``python -m tests.benchmarks.memory_table``.

A process of its own for every number: the largest resident size of two steps, less what was resident before them, with
the layer and its data, or the scores, in place. Float32, forward and backward; scores in float64.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from prob_moe import MixtureOfExperts, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.numerics import solve_assignment
from tests.benchmarks.experts import LAYERS

#: n, k, d, hidden units, experts per datapoint
SIZES = [
    (4096, 16, 128, 512, 1),
    (4096, 16, 128, 512, 2),
    (4096, 64, 128, 512, 1),
    (16384, 64, 128, 512, 1),
    (65536, 128, 64, 256, 1),
]
#: n and k of an assignment to experts that are all full
ASSIGNMENTS = [(65_536, 128), (1_000_000, 8)]
ASSIGNMENT = "assignment"
ONE_HOT = "one-hot einsum (GShard)"
SIDES = ["dense", "ours", ONE_HOT]
LARGEST = 4e9  # bytes of a one-hot tensor that is tried


def assignment(n: int, k: int) -> Callable[[], Any]:
    scores = torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return lambda: solve_assignment(scores, n // k)


def step(side: str, n: int, k: int, d: int, h: int, m: int) -> Callable[[], Any]:
    x, grad = torch.randn(n, d, requires_grad=True), torch.randn(n, d)
    if side == "dense":
        dense = nn.Sequential(nn.Linear(d, h), nn.ReLU(), nn.Linear(h, d))
        return lambda: torch.autograd.grad(dense(x), [x, *dense.parameters()], grad)
    experts = BatchedExperts(k, d, h, d)
    if side == ONE_HOT:
        assignment = torch.randperm(n) % k
        return lambda: torch.autograd.grad(
            LAYERS[ONE_HOT][0](experts, x, assignment, n // k), [x, *experts.parameters()], grad
        )
    mixture = MixtureOfExperts(
        nn.Linear(d, k),
        experts,
        lambda out: dist.Normal(out, 1.0).to_event(1),
        capacity_factor=1.0,
        num_selected=None if m == 1 else m,
    )
    elbo = TraceRouting_ELBO() if m == 1 else TraceMixture_ELBO()
    return lambda: torch.autograd.grad(
        elbo.differentiable_loss(mixture, None, x, grad), [x, *mixture.parameters()], allow_unused=True
    )


def measured(side: str, *size: int) -> int:
    """Bytes, in this process."""
    torch.set_num_threads(2)
    make = assignment if side == ASSIGNMENT else partial(step, side)
    make(max(64, size[1]), *size[1:])()  # compiles, and takes what it needs once
    run = make(*size)
    before = resident()
    run()
    run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def measured_elsewhere(side: str, *size: int) -> str:
    """MiB, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.memory_table", side, *map(str, size)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return f"{int(found.split()[-1]) / 2**20:.0f}"


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    table = Table(
        title="MiB at the peak of a training step beyond layer and data", caption="—: over 4 GB in one tensor"
    )
    for column in ("n", "k", "d", "hidden", "m", *SIDES):
        table.add_column(column, justify="right")
    for size in track(SIZES):
        n, m = size[0], size[-1]
        cells = []
        for side in SIDES:
            if side == ONE_HOT and (m > 1 or 4.0 * n * n > LARGEST):  # n·k·c entries, and c = n / k
                cells.append("" if m > 1 else "—")
                continue
            cells.append(measured_elsewhere(side, *size))
        table.add_row(*map(str, size), *cells)
    console = Console(width=120)
    console.print(table)
    table = Table(title="MiB at the peak of an exact assignment")
    for column in ("n", "k", "scores", "beyond them"):
        table.add_column(column, justify="right")
    for n, k in ASSIGNMENTS:
        table.add_row(str(n), str(k), f"{8 * n * k / 2**20:.0f}", measured_elsewhere(ASSIGNMENT, n, k))
    console.print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measured(sys.argv[1], *map(int, sys.argv[2:])))
    else:
        main()
