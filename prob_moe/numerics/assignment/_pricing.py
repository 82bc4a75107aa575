"""Prices that almost balance the experts: coordinate descent on the dual of the assignment problem.

The dual of max Σ_i S[i, z_i] with loads at most c is min_v Σ_i max_j (S_ij − v_j) + c Σ_j v_j. Row i bids
b_ij = S_ij − max_{l≠j} (S_il − v_l) for expert j, and chooses j where v_j < b_ij, so the best v_j at fixed other
prices leaves exactly c bids above it: an order statistic, whatever the scale of the scores. Sweeping over the experts
is Sinkhorn's iteration at temperature zero. Prices need not be exact here: the augmenting paths that follow repair
what is left. Hence float32, on scores relative to the best of their row.
"""

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import lower_to_zero

# Comparisons alone decide, and NaN has been rejected before: maxima and counts may be reordered, hence vectorised.
ORDERLESS = {"nnan", "nsz", "reassoc"}


@kernel(fastmath=ORDERLESS)
def gather_columns(scores: np.ndarray, rows: np.ndarray, step: int) -> np.ndarray:
    """Every ``step``-th of ``rows``, less its best score, as float32 (k, m), so that sweeps run along memory."""
    k = scores.shape[1]
    m = (rows.size + step - 1) // step
    columns = np.empty((k, m), np.float32)
    tile = np.empty((16, k), np.float32)  # a cache line of every column at a time
    for block in range(0, m, 16):
        width = min(16, m - block)
        for r in range(width):
            row = scores[rows[(block + r) * step]]
            best = -np.inf
            for j in range(k):
                best = row[j] if row[j] > best else best
            for j in range(k):
                tile[r, j] = row[j] - best
        for j in range(k):
            for r in range(width):
                columns[j, block + r] = tile[r, j]
    return columns


@kernel(fastmath=ORDERLESS)
def _finite_mean(values: np.ndarray) -> float:
    total, count = np.float32(0), np.float32(0)
    for i in range(values.size):
        finite = values[i] > np.float32(-3e38)
        total += values[i] if finite else np.float32(0)
        count += np.float32(1) if finite else np.float32(0)
    return float(total / max(count, np.float32(1)))


@kernel
def first_prices(columns: np.ndarray, prices: np.ndarray) -> float:
    """Write the mean finite score of each expert, which takes out a bias common to all rows; a row's typical spread."""
    total = 0.0
    for j in range(prices.size):
        prices[j] = _finite_mean(columns[j])
        total += prices[j]
    lower_to_zero(prices)
    return -total / prices.size


@kernel(fastmath=ORDERLESS)
def _count_above(values: np.ndarray, threshold: np.float32) -> int:
    count = np.float32(0)  # exact to 2^24, and as wide as the values: twice as many at a time
    for i in range(values.size):
        count += np.float32(1) if values[i] > threshold else np.float32(0)
    return int(count)


@kernel
def _finite_range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for i in range(values.size):
        if values[i] < low and values[i] > -np.inf:
            low = values[i]
        if values[i] > high and values[i] < np.inf:
            high = values[i]
    return low, high


@kernel
def _threshold(bids: np.ndarray, target: int, floor: float, guess: float, width: float) -> float:
    """A number at least ``floor`` with ``target`` of the bids above it, as nearly as ties allow."""
    if floor > -np.inf and _count_above(bids, floor) <= target:
        return floor
    # Bracket outwards from the guess: `low` has too many bids above it, `high` too few.
    low, high = guess, guess
    low_count = high_count = _count_above(bids, guess)
    if low_count == target:
        return guess
    for _ in range(6):
        if low_count > target >= high_count:
            break
        upwards = high_count > target
        edge = high + width if upwards else low - width
        count = _count_above(bids, edge)
        if upwards:
            low, low_count, high, high_count = high, high_count, edge, count
        else:
            low, low_count, high, high_count = edge, count, low, low_count
        width *= 2
    if not (low_count > target >= high_count):
        low, high = _finite_range(bids)
        if not low <= high:
            return max(floor, 0.0)
        low_count, high_count = bids.size, 0
    # Interpolate in the counts, kept off the ends so that the bracket always shrinks by a tenth.
    for _ in range(40):
        share = (low_count - target) / max(low_count - high_count, 1)
        middle = low + (high - low) * min(max(share, 0.1), 0.9)
        count = _count_above(bids, middle)
        if count == target:
            return max(middle, floor)
        if count > target:
            low, low_count = middle, count
        else:
            high, high_count = middle, count
        if high - low <= 1e-7 * max(abs(low), abs(high)):
            break
    return max(0.5 * (low + high), floor)


@kernel(fastmath=ORDERLESS)
def _raise_to(best: np.ndarray, column: np.ndarray, price: np.float32, out: np.ndarray) -> None:
    for r in range(best.size):
        value = column[r] - price
        out[r] = value if value > best[r] else best[r]


@kernel(fastmath=ORDERLESS)
def _bids(column: np.ndarray, left: np.ndarray, right: np.ndarray, bids: np.ndarray) -> None:
    for r in range(bids.size):
        bids[r] = column[r] - (left[r] if left[r] > right[r] else right[r])


@kernel
def sweep(columns: np.ndarray, prices: np.ndarray, target: np.ndarray, floor: float, width: float) -> float:
    """Set each of ``prices`` (k,) in turn to its optimum at fixed others for ``columns`` (k, m); the largest change.

    :param target: (k,) rows for each expert; :param floor: least price, 0 or -inf; :param width: expected change.
    """
    k, m = columns.shape
    right = np.empty((k + 1, m), np.float32)  # right[j]: best value among experts j, j+1, … at old prices
    right[k] = -np.inf
    for j in range(k - 1, 0, -1):
        _raise_to(right[j + 1], columns[j], np.float32(prices[j]), right[j])
    left = np.full(m, -np.inf, np.float32)  # best value among the experts already repriced
    bids = np.empty(m, np.float32)
    change = 0.0
    for j in range(k):
        _bids(columns[j], left, right[j + 1], bids)
        price = _threshold(bids, target[j], floor, prices[j], width)
        change = max(change, abs(price - prices[j]))
        prices[j] = price
        _raise_to(left, columns[j], np.float32(price), left)
    if floor > -np.inf:
        lower_to_zero(prices)  # a free slot somewhere: the cheapest expert costs nothing
    return change
