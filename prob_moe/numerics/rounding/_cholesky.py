"""Small positive definite systems, in compiled code."""

import math

import numpy as np

from prob_moe.numerics._compiled import kernel

LEAST = 1e-300  # of a pivot, so that a matrix of zeros has a huge solution and no error


@kernel
def solve_positive(matrix: np.ndarray, rhs: np.ndarray, x: np.ndarray) -> None:
    """Solve ``matrix @ x = rhs`` by Cholesky in place (lower triangle; positive definite up to rounding)."""
    k = rhs.size
    floor = LEAST
    for a in range(k):
        floor = max(floor, 1e-15 * matrix[a, a])
    for a in range(k):
        x[a] = rhs[a]
        for b in range(a + 1):
            entry = matrix[a, b]
            for m in range(b):
                entry -= matrix[a, m] * matrix[b, m]
            matrix[a, b] = math.sqrt(max(entry, floor)) if a == b else entry / matrix[b, b]
        for b in range(a):
            x[a] -= matrix[a, b] * x[b]
        x[a] /= matrix[a, a]
    for a in range(k - 1, -1, -1):
        for b in range(a + 1, k):
            x[a] -= matrix[b, a] * x[b]
        x[a] /= matrix[a, a]
