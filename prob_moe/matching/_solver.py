"""One assignment problem from scores to optimum, and batches of them in parallel."""

import numpy as np
from numba import njit, prange

from prob_moe.matching._augment import augment, build_exchange
from prob_moe.matching._distances import relax
from prob_moe.matching._pricing import first_prices, gather_columns, sweep

OPTIMAL, NOT_A_NUMBER, TOO_MANY, INFEASIBLE = 0, 1, 2, 3

# Sample sizes of the price phase: `(rows per expert, sweeps)`, from coarse to fine.
_SAMPLES = ((16, 4), (128, 2), (1024, 2))


@njit(cache=True, nogil=True)
def _present_rows(mask: np.ndarray, n: int) -> np.ndarray:
    rows = np.empty(n, np.int64)
    count = 0
    for i in range(n):
        if mask.size == 0 or mask[i]:
            rows[count] = i
            count += 1
    return rows[:count]


@njit(cache=True, nogil=True)
def _invalid(scores: np.ndarray, rows: np.ndarray) -> bool:
    """Whether NaN or +inf occurs in ``rows``; both fail the comparison below."""
    bad = False
    for i in rows:
        for j in range(scores.shape[1]):
            bad |= not (scores[i, j] < np.inf)
    return bad


@njit(cache=True, nogil=True)
def _choose(scores: np.ndarray, rows: np.ndarray, prices: np.ndarray, assignment: np.ndarray) -> bool:
    """The expert that maximises S_ij − v_j for each row; False where a row allows no expert."""
    for i in rows:
        best, best_value = -1, -np.inf
        for j in range(prices.size):
            value = scores[i, j] - prices[j]
            if value > best_value:
                best, best_value = j, value
        if best < 0:
            return False
        assignment[i] = best
    return True


@njit(cache=True, nogil=True)
def _balancing_prices(scores: np.ndarray, rows: np.ndarray, capacity: int) -> np.ndarray:
    """Prices at which the best choices of the rows nearly fit into capacity."""
    k = scores.shape[1]
    floor = 0.0 if rows.size < k * capacity else -np.inf
    prices = np.zeros(0)
    width = 0.0
    for per_expert, sweeps in _SAMPLES:
        step = max(1, rows.size // (per_expert * k))
        columns = gather_columns(scores, rows, step)
        if prices.size == 0:
            prices, spread = first_prices(columns)
            width = spread / 8
        target = max(1, int(capacity * columns.shape[1] / rows.size + 0.5))
        for _ in range(sweeps):
            width = 0.25 * sweep(columns, prices, target, floor, width)
            if width == 0.0:
                break
        if step == 1:
            break
    return prices


@njit(cache=True, nogil=True)
def solve_one(
    scores: np.ndarray,
    mask: np.ndarray,
    capacity: int,
    assignment: np.ndarray,
    costs: np.ndarray,
    distances: np.ndarray,
    loads: np.ndarray,
) -> int:
    """Solve ``scores`` (n, k) and write all that follows from its optimum; return a status.

    :param assignment: (n,) out; :param costs: (k, k) out, exchange costs; :param distances: (k, k) out, their shortest
        paths; :param loads: (k,) out.
    """
    n, k = scores.shape
    rows = _present_rows(mask, n)
    assignment[:] = -1
    loads[:] = 0
    if _invalid(scores, rows):
        return NOT_A_NUMBER
    if rows.size > k * capacity:
        return TOO_MANY
    edges = np.full((k + 1, k + 1), np.inf)
    movers = np.full((k + 1, k + 1), -1)
    if rows.size > 0:
        prices = _balancing_prices(scores, rows, capacity)
        if not _choose(scores, rows, prices, assignment):
            return INFEASIBLE
        build_exchange(scores, rows, assignment, edges, movers)
        if not augment(scores, rows, assignment, capacity, prices, edges, movers):
            return INFEASIBLE
    for i in rows:
        loads[assignment[i]] += 1
    for a in range(k):
        for b in range(k):
            costs[a, b] = min(edges[a, b], 0.0) if loads[a] < capacity else edges[a, b]
        costs[a, a] = 0.0
    distances[:] = costs
    relax(distances)
    return OPTIMAL


@njit(cache=True, nogil=True, parallel=True)
def solve_many(
    scores: np.ndarray,
    mask: np.ndarray,
    capacity: int,
    assignment: np.ndarray,
    costs: np.ndarray,
    distances: np.ndarray,
    loads: np.ndarray,
    status: np.ndarray,
) -> None:
    """``solve_one`` for every problem of a batch (b, n, k), spread over the threads of numba."""
    for p in prange(scores.shape[0]):
        present = mask[p] if mask.shape[0] > 0 else np.empty(0, np.bool_)
        status[p] = solve_one(scores[p], present, capacity, assignment[p], costs[p], distances[p], loads[p])
