"""Batches of assignment problems: for each the solver of one expert per row, or of several."""

import numpy as np

from prob_moe.numerics._compiled import batch_kernel
from prob_moe.numerics.assignment._several import solve_several
from prob_moe.numerics.assignment._solver import solve_one


@batch_kernel
def solve_many(
    scores: np.ndarray,
    mask: np.ndarray,
    slots: np.ndarray,
    assignment: np.ndarray,
    costs: np.ndarray,
    distances: np.ndarray,
    prices: np.ndarray,
    status: np.ndarray,
) -> None:
    """
    Every problem of a batch, scores (b, n, k) with slots (b, k).

    :param assignment: (b, n) for one expert per row, (b, m, n) for m. Numba compiles what it needs for either.
    """
    for p in range(scores.shape[0]):
        present = mask[p] if mask.shape[0] > 0 else np.empty(0, np.bool_)
        if assignment.ndim == 2:
            status[p] = solve_one(scores[p], present, slots[p], assignment[p], costs[p], distances[p], prices[p])
        else:
            status[p] = solve_several(scores[p], present, slots[p], assignment[p], costs[p], distances[p], prices[p])
