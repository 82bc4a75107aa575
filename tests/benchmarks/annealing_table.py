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


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]] or list(SEEDS)
    table = Table(title=f"log P of a permutation, constant logits; {torch.get_num_threads()} threads")
    for column in (
        "n",
        "seeds",
        "method",
        "mean off",
        "largest off",
        "goal",
        "mean reported",
        "beyond 2",
        "seconds",
        "goal",
    ):
        table.add_column(column, justify="right")
    for n, seeds in zip(SIZES, counts):
        if seeds == 0:
            continue
        off, errors, seconds, method = values(n, seeds)
        nats, limit = GOALS[n]
        beyond = int((off.abs() > 2 * errors).sum())
        table.add_row(
            str(n),
            str(seeds),
            method,
            f"{off.mean():+.3f}",
            f"{off.abs().max():.3f}",
            f"{nats:g}",
            f"{errors.mean():.3f}",
            f"{beyond} of {seeds}",
            f"{seconds:.1f}",
            str(limit),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
