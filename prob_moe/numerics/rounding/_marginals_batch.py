"""Batches of problems of minimum-variance marginals: for each the solver of one expert per row, or of several."""

import numpy as np

from prob_moe.numerics._compiled import batch_kernel
from prob_moe.numerics.rounding._minimum_variance import feasible_marginals, solve_prices
from prob_moe.numerics.rounding._selected_rows import solve_selected


@batch_kernel
def solve_marginals(
    p: np.ndarray,
    present: np.ndarray,
    capacity: np.ndarray,
    picks: int | None,
    alpha: np.ndarray,
    beta: np.ndarray,
    r: np.ndarray,
    objective: np.ndarray,
    gap: np.ndarray,
    tolerance: float,
    max_steps: int,
) -> None:
    """
    All problems of a batch: p (b, n, k) in; α (b, n), β (b, k), r (b, n, k), Σ p²/r and its gap (b,) out.

    :param picks: experts of every row; None for one. Numba compiles what it needs for either.
    """
    for b in range(p.shape[0]):
        if picks is None:
            dual, _ = solve_prices(p[b], present[b], capacity[b], alpha[b], beta[b], tolerance, max_steps)
            objective[b] = feasible_marginals(p[b], present[b], capacity[b], alpha[b], beta[b], r[b])
            gap[b] = max(objective[b] - dual, 0.0)
        else:
            objective[b], gap[b] = solve_selected(
                p[b], present[b], capacity[b], picks, alpha[b], beta[b], r[b], tolerance, max_steps
            )
