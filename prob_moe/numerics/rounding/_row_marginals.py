"""Compiled kernel of the minimum-variance marginals where experts have no limit: every row by itself."""

import numpy as np

from prob_moe.numerics._compiled import batch_kernel, kernel
from prob_moe.numerics.rounding._minimum_variance import FAST


@kernel(fastmath=FAST, error_model="numpy")
def _row(p: np.ndarray, picks: int, taken: np.ndarray, r: np.ndarray) -> float:
    """One row, ``taken`` (k,) for its use; returns α."""
    allowed = 0
    least = np.inf
    for j in range(p.size):
        taken[j] = 0.0
        allowed += p[j] > 0.0
        least = min(least, p[j] if p[j] > 0.0 else np.inf)
    if allowed <= picks:
        for j in range(p.size):
            r[j] = 1.0 if p[j] > 0.0 else 0.0
        return least * least if allowed > 0 else 0.0
    scale = 0.0
    for certain in range(picks):
        # What is left of p is a sum of it, never a difference from 1.
        rest, largest, place = 0.0, -1.0, 0
        for j in range(p.size):
            left = p[j] if taken[j] == 0.0 else 0.0
            rest += left
            largest = max(largest, left)
        scale = (picks - certain) / rest
        if scale * largest <= 1.0:
            break
        while p[place] != largest or taken[place] != 0.0:
            place += 1
        taken[place] = 1.0
    for j in range(p.size):
        r[j] = min(1.0, scale * p[j])
    return 1.0 / (scale * scale)


@batch_kernel
def row_marginals(p: np.ndarray, picks: int, r: np.ndarray, alpha: np.ndarray) -> None:
    """r = min(1, p / sqrt(α_i)) with row sums m, (rows, k), and α (rows,); 0 in rows that allow nothing.

    A row takes some of its likeliest experts for certain and the others in proportion to p. A row that allows m experts
    at most takes all of them.

    :param p: (rows, k), 0 where forbidden.
    """
    taken = np.empty(p.shape[1])
    for i in range(p.shape[0]):
        alpha[i] = _row(p[i], picks, taken, r[i])
