"""Batches of problems of minimum-variance marginals, with one expert per row, or with several.

All take p (b, n, k), and write α (b, n), β (b, k), r (b, n, k), Σ p²/r and its gap (b,). Several kernels: nobody waits
for the compilation of what he does not ask for.
"""

import numpy as np

from prob_moe.numerics._compiled import batch_kernel
from prob_moe.numerics.rounding._minimum_variance import feasible_marginals, solve_prices
from prob_moe.numerics.rounding._selected_quick import solve_quickly
from prob_moe.numerics.rounding._selected_rows import solve_selected


@batch_kernel
def solve_marginals(
    p: np.ndarray,
    present: np.ndarray,
    capacity: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    r: np.ndarray,
    objective: np.ndarray,
    gap: np.ndarray,
    tolerance: float,
    max_steps: int,
) -> None:
    for b in range(p.shape[0]):
        dual, _ = solve_prices(p[b], present[b], capacity[b], alpha[b], beta[b], tolerance, max_steps)
        objective[b] = feasible_marginals(p[b], present[b], capacity[b], alpha[b], beta[b], r[b])
        gap[b] = max(objective[b] - dual, 0.0)


@batch_kernel
def solve_selected_quickly(
    p: np.ndarray,
    present: np.ndarray,
    capacity: np.ndarray,
    picks: int,
    alpha: np.ndarray,
    beta: np.ndarray,
    r: np.ndarray,
    objective: np.ndarray,
    gap: np.ndarray,
    tolerance: float,
    max_steps: int,
) -> None:
    """As :func:`solve_selected_marginals`; nan in ``objective`` where the quick way is not enough."""
    for b in range(p.shape[0]):
        objective[b], gap[b] = solve_quickly(
            p[b], present[b], capacity[b], picks, alpha[b], beta[b], r[b], tolerance, max_steps
        )


@batch_kernel
def solve_selected_marginals(
    p: np.ndarray,
    present: np.ndarray,
    capacity: np.ndarray,
    picks: int,
    alpha: np.ndarray,
    beta: np.ndarray,
    r: np.ndarray,
    objective: np.ndarray,
    gap: np.ndarray,
    tolerance: float,
    max_steps: int,
) -> None:
    """The problems whose ``objective`` is nan.

    :param picks: experts of every row; α and r hold their optimum without capacity before.
    """
    for b in range(p.shape[0]):
        if np.isnan(objective[b]):
            objective[b], gap[b] = solve_selected(
                p[b], present[b], capacity[b], picks, alpha[b], beta[b], r[b], tolerance, max_steps
            )
