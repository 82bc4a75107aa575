"""Is log P of Gumbel-Matching right, and its reported error? A table over sizes, capacities and scales.

Enumerated cells: Σ_Z P(Z) against 1. Additive cells, φ_ij = a_i + b_j with n = kc: every value, from points of its own,
against the exact log P = k log c! − log n!, by the share of values that lie beyond two reported errors.

Run by ``make bench-likelihood``; the argument is the number of values of an additive cell. A cell whose values take
long has as many as fit into its share of the time, and says how many.
"""

import math
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from prob_moe.numerics.prices.likelihood import matching_log_prob
from tests.numerics.brute_force import enumerate_assignments

ENUMERATED = [(4, 4, 1), (3, 4, 1), (4, 2, 2), (3, 2, 2), (6, 3, 2), (4, 3, 2), (3, 3, 1), (5, 4, 2)]
ADDITIVE = [(8, 8, 1), (16, 16, 1), (8, 4, 2), (16, 8, 2), (32, 16, 2), (32, 8, 4), (64, 16, 4)]
HARD = [(32, 32, 1), (64, 32, 2), (64, 64, 1), (128, 32, 4), (128, 64, 2)]
SECONDS = 25.0  # of a cell
LEAST_VALUES = 4
FIRST_SEED = 1000
SCALES = (1.0, 5.0, 15.0, 50.0)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def enumerated(n: int, k: int, capacity: int, scale: float, dtype: torch.dtype) -> tuple[str, ...]:
    support = enumerate_assignments(n, k, capacity)
    log_prob, error = matching_log_prob((scale * draw(n, k, seed=2)).to(dtype), support, capacity)
    total, spread = float(log_prob.double().exp().sum()), float((log_prob.double().exp() * error).sum())
    rounding = 1e-5 if dtype == torch.float64 else 1e-4
    beyond = int(abs(total - 1) > 2 * spread + rounding or bool((log_prob > 0).any()))
    return "sum over all Z", "1", f"{total:.5f}", f"{spread:.5f}", f"{beyond} of 1"


def additive(n: int, k: int, capacity: int, scale: float, values: int) -> tuple[int, int, tuple[str, ...]]:
    exact = k * math.lgamma(capacity + 1) - math.lgamma(n + 1)
    beyond, count, last, errors, start = 0, 0, 0.0, 0.0, time.perf_counter()
    while count < values and (count < LEAST_VALUES or time.perf_counter() - start < SECONDS):
        seed = FIRST_SEED + count
        logits = scale * (draw(n, 1, seed=seed) + draw(1, k, seed=seed + 10_000))
        log_prob, error = matching_log_prob(logits, torch.arange(n) % k, capacity, integration_seed=seed)
        last, errors, count = float(log_prob), errors + float(error), count + 1
        beyond += abs(last - exact) > 2 * float(error)
    row = ("k log c! − log n!", f"{exact:.3f}", f"{last:.3f}", f"{errors / count:.3f}", f"{beyond} of {count}")
    return beyond, count, row


def main() -> None:
    values = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    columns = ("n", "k", "c", "scale", "dtype", "slots", "reference", "exact", "value", "reported error", "beyond 2")
    table, start = Table(title="log P of Gumbel-Matching"), time.perf_counter()
    for column in columns:
        table.add_column(column, justify="right")
    for n, k, capacity in ENUMERATED:
        for scale in SCALES:
            for dtype in (torch.float64, torch.float32):
                slots, name = "tight" if n == k * capacity else "slack", str(dtype).removeprefix("torch.")
                row = enumerated(n, k, capacity, scale, dtype)
                table.add_row(str(n), str(k), str(capacity), f"{scale:g}", name, slots, *row)
    all_beyond, all_values, worst = 0, 0, 0.0
    for n, k, capacity in ADDITIVE + HARD:
        for scale in SCALES if (n, k, capacity) in ADDITIVE else SCALES[:1]:
            beyond, count, row = additive(n, k, capacity, scale, values)
            all_beyond, all_values, worst = all_beyond + beyond, all_values + count, max(worst, beyond / count)
            table.add_row(str(n), str(k), str(capacity), f"{scale:g}", "float64", "tight", *row)
    console = Console(width=140)
    console.print(table)
    console.print(
        f"{table.row_count} cells in {time.perf_counter() - start:.0f} s; additive: {all_beyond} of {all_values} "
        f"values beyond two reported errors, at most {worst:.0%} in a cell"
    )


if __name__ == "__main__":
    main()
