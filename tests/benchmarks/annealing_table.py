"""Does the reported error of an annealed log P cover? ``python -m tests.benchmarks.annealing_table [N...]``

Constant logits, c = 1, n = k: log P = −log n! exactly, from many integration seeds. The arguments are numbers of seeds
at n = 32, 64 and 128, by default 100, 20 and 8, which takes an hour.
"""

import math
import sys
import time

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from prob_moe.distributions import GumbelMatching
from prob_moe.numerics import METHODS

SIZES = (32, 64, 128)
SEEDS = (100, 20, 8)
#: nats that the largest error shall stay below, and seconds on two threads
GOALS = {32: (0.05, 5), 64: (0.1, 20), 128: (0.15, 90)}


def values(n: int, seeds: int) -> tuple[torch.Tensor, torch.Tensor, float, str]:
    """:returns: errors in nats, reported errors, the least seconds of a value, and the method."""
    found, errors, best, method = [], [], math.inf, ""
    for seed in track(range(seeds), description=f"n = {n}"):
        law = GumbelMatching(torch.zeros(n, n, dtype=torch.float64), capacity=1, integration_seed=seed)
        value = torch.arange(n)
        start = time.perf_counter()
        likelihood = law.likelihood(value)
        best = min(best, time.perf_counter() - start)
        found.append(float(likelihood.log_prob) + math.lgamma(n + 1))
        errors.append(float(likelihood.error))
        method = METHODS[int(likelihood.method)]
    return torch.tensor(found), torch.tensor(errors), best, method


def row(n: int, seeds: int) -> Table:
    """One size, told as soon as it is done."""
    off, errors, seconds, method = values(n, seeds)
    nats, limit = GOALS[n]
    beyond = int((off.abs() > 2 * errors).sum())
    cells = {
        "n": str(n),
        "seeds": str(seeds),
        "method": method,
        "mean off": f"{off.mean():+.3f}",
        "largest off": f"{off.abs().max():.3f} (goal {nats:g})",
        "mean reported": f"{errors.mean():.3f}",
        "beyond 2": f"{beyond} of {seeds}",
        "least seconds": f"{seconds:.1f} (goal {limit})",
    }
    table = Table(title=f"log P of a permutation, constant logits; {torch.get_num_threads()} threads")
    for column in cells:
        table.add_column(column, justify="right")
    table.add_row(*cells.values())
    return table


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]] or list(SEEDS)
    for n, seeds in zip(SIZES, counts):
        if seeds > 0:
            Console(width=140).print(row(n, seeds))


if __name__ == "__main__":
    main()
