"""Prices that almost balance the experts: coordinate descent on the dual of the assignment problem.

The dual of max Σ_i S[i, z_i] with loads at most c is min_v Σ_i max_j (S_ij − v_j) + c Σ_j v_j. Row i bids
b_ij = S_ij − max_{l≠j} (S_il − v_l) for expert j, and chooses j where v_j < b_ij, so the best v_j at fixed other
prices leaves exactly c bids above it: an order statistic, whatever the scale of the scores. Sweeping over the experts
is Sinkhorn's iteration at temperature zero. Prices need not be exact here: the augmenting paths that follow repair
what is left.
"""

import numpy as np
from numba import njit

# Comparisons alone decide, and NaN has been rejected before: maxima and counts may be reordered, hence vectorised.
_ORDERLESS = {"nnan", "nsz", "reassoc"}


@njit(cache=True, nogil=True, fastmath=_ORDERLESS)
def _count_above(values: np.ndarray, threshold: float) -> int:
    count = 0
    for i in range(values.size):
        count += values[i] > threshold
    return count


@njit(cache=True, nogil=True)
def _finite_range(values: np.ndarray) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for i in range(values.size):
        if values[i] < low and values[i] > -np.inf:
            low = values[i]
        if values[i] > high and values[i] < np.inf:
            high = values[i]
    return low, high


@njit(cache=True, nogil=True)
def _threshold(bids: np.ndarray, target: int, floor: float) -> float:
    """A number at least ``floor`` with ``target`` of the bids above it, as nearly as ties allow."""
    low, high = _finite_range(bids)
    if not low <= high:
        return max(floor, 0.0)
    if floor > -np.inf:
        if _count_above(bids, floor) <= target:
            return floor
        low = floor
    # `low` has too many bids above it, `high` too few; 50 halvings exhaust the digits that matter to a heuristic.
    for _ in range(50):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        count = _count_above(bids, middle)
        if count == target:
            return middle
        if count > target:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


@njit(cache=True, nogil=True)
def gather_columns(scores: np.ndarray, rows: np.ndarray, step: int) -> np.ndarray:
    """Every ``step``-th of ``rows`` as a float64 array (k, m): expert by expert, so that sweeps run along memory."""
    k = scores.shape[1]
    m = (rows.size + step - 1) // step
    columns = np.empty((k, m))
    for block in range(0, m, 16):
        for j in range(k):
            for r in range(block, min(block + 16, m)):
                columns[j, r] = scores[rows[r * step], j]
    return columns


@njit(cache=True, nogil=True)
def column_means(columns: np.ndarray) -> np.ndarray:
    """Mean finite score of each expert, which takes a bias common to all rows out of the first prices."""
    k, m = columns.shape
    means = np.zeros(k)
    for j in range(k):
        count = 0
        for r in range(m):
            if columns[j, r] > -np.inf:
                means[j] += columns[j, r]
                count += 1
        means[j] /= max(count, 1)
    return means


@njit(cache=True, nogil=True, fastmath=_ORDERLESS)
def _raise_to(best: np.ndarray, column: np.ndarray, price: float) -> None:
    for r in range(best.size):
        value = column[r] - price
        best[r] = value if value > best[r] else best[r]


@njit(cache=True, nogil=True, fastmath=_ORDERLESS)
def _bids(column: np.ndarray, left: np.ndarray, right: np.ndarray, bids: np.ndarray) -> None:
    for r in range(bids.size):
        bids[r] = column[r] - (left[r] if left[r] > right[r] else right[r])


@njit(cache=True, nogil=True)
def sweep(columns: np.ndarray, prices: np.ndarray, target: int, floor: float) -> None:
    """Set each price in turn to its optimum at fixed other prices, in O(k m log m) for ``columns`` (k, m)."""
    k, m = columns.shape
    right = np.empty((k + 1, m))  # right[j]: best value among experts j, j+1, … at old prices
    right[k] = -np.inf
    for j in range(k - 1, 0, -1):
        right[j] = right[j + 1]
        _raise_to(right[j], columns[j], prices[j])
    left = np.full(m, -np.inf)  # best value among the experts already repriced
    bids = np.empty(m)
    for j in range(k):
        _bids(columns[j], left, right[j + 1], bids)
        prices[j] = _threshold(bids, target, floor)
        _raise_to(left, columns[j], prices[j])
    if floor > -np.inf:
        prices -= prices.min()  # a free slot somewhere: the cheapest expert costs nothing
