"""One assignment problem from scores to optimum, with one expert per row."""

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics.assignment._augment import augment, build_exchange
from prob_moe.numerics.assignment._distances import exchanges
from prob_moe.numerics.assignment._start import start

OPTIMAL, NOT_A_NUMBER, TOO_MANY, INFEASIBLE = 0, 1, 2, 3


@kernel
def present_rows(mask: np.ndarray, n: int) -> np.ndarray:
    rows = np.empty(n, np.int64)
    count = 0
    for i in range(n):
        if mask.size == 0 or mask[i]:
            rows[count] = i
            count += 1
    return rows[:count]


@kernel
def status_before(scores: np.ndarray, rows: np.ndarray, picks: int, capacity: np.ndarray) -> int:
    """What is wrong with a problem at first sight: NaN or +inf in ``rows``, or too few slots for all their picks."""
    bad = False
    for i in rows:
        for j in range(scores.shape[1]):
            bad |= not (scores[i, j] < np.inf)  # false for both
    if bad:
        return NOT_A_NUMBER
    return TOO_MANY if rows.size * picks > capacity.sum() else OPTIMAL


@kernel(only_caller=True)
def solve_one(
    scores: np.ndarray,
    mask: np.ndarray,
    capacity: np.ndarray,
    assignment: np.ndarray,
    costs: np.ndarray,
    distances: np.ndarray,
    prices: np.ndarray,
) -> int:
    """Solve ``scores`` (n, k) and write all that follows from its optimum; return a status.

    :param capacity: (k,) slots of every expert.
    :param assignment: (n,) out; :param costs: (k, k) out, exchange costs; :param distances: (k, k) out, their shortest
        paths; :param prices: (k,) out, shadow prices.
    """
    n, k = scores.shape
    rows = present_rows(mask, n)
    assignment[:] = -1
    status = status_before(scores, rows, 1, capacity)
    if status != OPTIMAL:
        return status
    edges = np.full((k + 1, k + 1), np.inf)
    movers = np.full((k + 1, k + 1), -1)
    if rows.size > 0:
        potentials = np.empty(k)
        if not start(scores, rows, capacity, assignment, potentials):
            return INFEASIBLE
        build_exchange(scores, rows, assignment, edges, movers)
        if not augment(scores, rows, assignment, capacity, potentials, edges, movers):
            return INFEASIBLE
    loads = np.zeros(k, np.int64)
    for i in rows:
        loads[assignment[i]] += 1
    exchanges(edges, loads, capacity, costs, distances, prices)
    return OPTIMAL
