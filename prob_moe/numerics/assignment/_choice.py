"""What every row prefers at given prices, and by how much."""

import numpy as np

from prob_moe.numerics._compiled import kernel


@kernel(fastmath={"nnan", "nsz", "reassoc"})
def _top(values: np.ndarray) -> float:
    """The maximum, in an order that the compiler may choose: vectorised, which a search for its place is not."""
    top = -np.inf
    for j in range(values.size):
        top = values[j] if values[j] > top else top
    return top


@kernel
def choose(scores: np.ndarray, rows: np.ndarray, prices: np.ndarray, assignment: np.ndarray) -> bool:
    """Put each of ``rows`` to the expert that maximises S_ij − v_j; False if a row allows none."""
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


@kernel
def choose_with_margin(
    scores: np.ndarray, rows: np.ndarray, prices: np.ndarray, assignment: np.ndarray, margin: np.ndarray
) -> bool:
    """As :func:`choose`; ``margin`` (n,) tells by how much the choice beats the second best.

    A choice stands as long as prices change by less than that relative to each other.
    """
    values = np.empty(prices.size)
    for i in rows:
        for j in range(prices.size):
            values[j] = scores[i, j] - prices[j]
        top = _top(values)
        if top == -np.inf:
            return False
        j = 0
        while values[j] != top:
            j += 1
        assignment[i] = j
        values[j] = -np.inf
        margin[i] = top - _top(values)
    return True
