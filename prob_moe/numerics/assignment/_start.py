"""A start for the augmenting paths: prices, and the best choices at them, that overfill few experts by few rows."""

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import largest, select, smallest
from prob_moe.numerics.assignment._choice import choose, choose_with_margin
from prob_moe.numerics.assignment._pricing import first_prices, gather_columns, sweep

# Samples of the rows on which prices are improved, from coarse to fine: `(rows per expert, most sweeps)`. The coarse
# one is cheap and carries prices a long way if it must; r rows per expert leave a relative error of loads near 1 / √r.
_SAMPLES = ((16, 24), (128, 2), (1024, 1))
# A sweep that changes no price by more than this part of the spread of the scores is the last one on its sample.
_SETTLED = 0.02


@kernel
def _targets(room: np.ndarray, share: float) -> np.ndarray:
    targets = np.empty(room.size, np.int64)
    for j in range(room.size):
        targets[j] = max(1, int(room[j] * share + 0.5))
    return targets


@kernel
def _improve_on_samples(
    scores: np.ndarray, rows: np.ndarray, room: np.ndarray, floor: float, prices: np.ndarray
) -> tuple[float, bool]:
    """Write ``prices`` after all samples; returns what to expect of their next change, and whether the last sample held
    all rows."""
    spread, width, step = 0.0, 0.0, 2
    for per_expert, sweeps in _SAMPLES:
        if step == 1:
            break
        first = width == 0.0
        step = max(1, rows.size // (per_expert * room.size))
        if first and step < 4:
            step = 1  # too few rows for a sample to save anything
        columns = gather_columns(scores, rows, step)
        if first:
            spread = first_prices(columns, prices)
            width = spread / 8
        targets = _targets(room, columns.shape[1] / rows.size)
        for _ in range(sweeps):
            change = sweep(columns, prices, targets, floor, width)
            width = 0.25 * change
            if change <= _SETTLED * spread:
                break
    return width, step == 1


@kernel
def _within(rows: np.ndarray, margin: np.ndarray, limit: float) -> np.ndarray:
    """The rows whose choice beats the second best by no more than this."""
    found = np.empty(rows.size, np.int64)
    count = 0
    for i in rows:
        if margin[i] <= limit:
            found[count] = i
            count += 1
    return found[:count]


@kernel
def start(
    scores: np.ndarray, rows: np.ndarray, capacity: np.ndarray, assignment: np.ndarray, prices: np.ndarray
) -> bool:
    """Write ``prices`` (k,) and the choice of each of ``rows`` at them; False if a row allows no expert."""
    k = prices.size
    room = capacity.copy()
    floor = 0.0 if rows.size < capacity.sum() else -np.inf
    width, complete = _improve_on_samples(scores, rows, room, floor, prices)
    if complete:
        return choose(scores, rows, prices, assignment)

    # More rows than the samples: only those that are nearly undecided are swept over; the others keep their slots.
    margin = np.empty(assignment.size)
    if not choose_with_margin(scores, rows, prices, assignment, margin):
        return False
    for i in rows:
        room[assignment[i]] -= 1
    contested = 64 * k
    for j in range(k):
        contested -= 8 * min(room[j], 0)
    stride = max(1, rows.size // 4096)
    sample = np.empty((rows.size + stride - 1) // stride)
    for place in range(sample.size):
        sample[place] = margin[rows[place * stride]]
    limit = select(sample, min(sample.size - 1, sample.size * contested // rows.size))
    open_rows = _within(rows, margin, limit)
    for i in open_rows:
        room[assignment[i]] += 1
    columns = gather_columns(scores, open_rows, 1)
    before = prices.copy()
    for _ in range(2):
        width = 0.25 * sweep(columns, prices, _targets(room, 1.0), floor, width)
    for j in range(k):
        before[j] = prices[j] - before[j]
    return choose(scores, _within(rows, margin, largest(before) - smallest(before)), prices, assignment)
