"""Is log P of Gumbel-Matching right, and its reported error? A table over sizes, capacities and scales.

Enumerated cells: Σ_Z P(Z) against 1. Additive cells, φ_ij = a_i + b_j with n = kc: every value, from points of its own,
against the exact log P = k log c! − log n!, by the share of values that lie beyond two reported errors.

Run by ``make bench-likelihood``; the argument is the number of values of an additive cell.
"""

import math
import sys
import time
from collections.abc import Iterator

import torch
from rich.console import Console
from rich.table import Table

from prob_moe.matching.likelihood import matching_log_prob
from tests.matching.brute_force import enumerate_assignments

ENUMERATED = [(4, 4, 1), (3, 4, 1), (4, 2, 2), (3, 2, 2), (6, 3, 2), (4, 3, 2), (3, 3, 1), (5, 4, 2)]
ADDITIVE = [(8, 8, 1), (16, 16, 1), (8, 4, 2), (16, 8, 2), (32, 16, 2), (32, 8, 4), (64, 16, 4)]
SLOW = [(32, 32, 1), (64, 32, 2), (128, 32, 4), (128, 64, 2)]  # a twentieth of the values
SCALES = (1.0, 5.0, 15.0, 50.0)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def enumerated(n: int, k: int, capacity: int, scale: float) -> tuple[str, ...]:
    support = enumerate_assignments(n, k, capacity)
    log_prob, error = matching_log_prob(scale * draw(n, k, seed=2), support, capacity)
    total, spread = float(log_prob.exp().sum()), float((log_prob.exp() * error).sum())
    beyond = abs(total - 1) > 2 * spread + 1e-5
    return "enumeration", "1", f"{total:.5f}", f"{spread:.5f}", f"{int(beyond)} of 1"


def additive(n: int, k: int, capacity: int, scale: float, values: int) -> tuple[str, ...]:
    exact = k * math.lgamma(capacity + 1) - math.lgamma(n + 1)
    beyond, last, errors = 0, 0.0, 0.0
    for seed in range(values):
        logits = scale * (draw(n, 1, seed=seed) + draw(1, k, seed=seed + 10_000))
        log_prob, error = matching_log_prob(logits, torch.arange(n) % k, capacity, integration_seed=seed)
        last, errors = float(log_prob), errors + float(error)
        beyond += abs(last - exact) > 2 * float(error)
    return "k log c! − log n!", f"{exact:.3f}", f"{last:.3f}", f"{errors / values:.3f}", f"{beyond} of {values}"


def rows(values: int) -> Iterator[tuple[str, ...]]:
    for n, k, capacity in ENUMERATED:
        for scale in SCALES:
            kind = "tight" if n == k * capacity else "slack"
            yield str(n), str(k), str(capacity), f"{scale:g}", kind, *enumerated(n, k, capacity, scale)
    for cells, count in ((ADDITIVE, values), (SLOW, max(1, values // 20))):
        for n, k, capacity in cells:
            for scale in SCALES if cells is ADDITIVE else SCALES[:1]:
                result = additive(n, k, capacity, scale, count)
                yield str(n), str(k), str(capacity), f"{scale:g}", "tight", *result


def main() -> None:
    values = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    columns = ("n", "k", "c", "scale", "slots", "reference", "exact", "value", "reported error", "beyond 2 errors")
    table, start = Table(title="log P of Gumbel-Matching"), time.perf_counter()
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows(values):
        table.add_row(*row)
    Console(width=130).print(table)
    Console().print(f"{table.row_count} cells in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
