"""What both ways to the minimum-variance marginals of several experts per datapoint need: a start, values, prices."""

import math

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import largest, select
from prob_moe.numerics.rounding._minimum_variance import FAST

BLEND = 0.4  # part of the start that is even over the experts


@kernel
def num_allowed(p: np.ndarray) -> int:
    count = 0
    for j in range(p.size):
        count += p[j] > 0.0
    return count


@kernel
def fits(r: np.ndarray, capacity: int) -> bool:
    """Whether nobody has to give way, where r (n, k) is the optimum without capacity."""
    load = np.zeros(r.shape[1])
    for i in range(r.shape[0]):
        for j in range(r.shape[1]):
            load[j] += r[i, j]
    return largest(load) <= capacity * (1.0 + 1e-12)


@kernel
def free_one_price(p: np.ndarray, full: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> None:
    """One price is free among full experts and their rows: the cheapest of them costs nothing."""
    lowest = np.inf
    for j in range(full.size):
        if full[j]:
            lowest = min(lowest, beta[j])
    for i in range(alpha.size):
        for j in range(full.size):
            if full[j] and p[i, j] > 0.0:
                alpha[i] += lowest
                break
    for j in range(full.size):
        if full[j]:
            beta[j] -= lowest


@kernel
def first_marginals(
    p: np.ndarray, sums: np.ndarray, slots: np.ndarray, r: np.ndarray, alpha: np.ndarray, beta: np.ndarray
) -> None:
    """The optimum without capacity, blended with even marginals so that no entry is near a bound."""
    n, k = p.shape
    load = np.zeros(k)
    for i in range(n):
        allowed = num_allowed(p[i])
        even = min(0.9, sums[i] / allowed)
        price = alpha[i]
        for j in range(k):
            if p[i, j] > 0.0:
                best = min(1.0, p[i, j] / math.sqrt(price)) if price > 0.0 else 1.0
                r[i, j] = (1.0 - BLEND) * best + BLEND * even
                load[j] += r[i, j]
            else:
                r[i, j] = 0.5
    sorted_once = alpha.copy()  # the median
    middle = 0.5 * (select(sorted_once, n // 2) + select(sorted_once, (n - 1) // 2))
    for j in range(k):
        beta[j] = max((load[j] / max(slots[j], 0.5)) ** 2 - 1.0, 0.0) * middle


@kernel(fastmath=FAST, error_model="numpy")
def dual_value(p: np.ndarray, sums: np.ndarray, slots: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> float:
    """The dual value: no feasible r has a smaller Σ p²/r."""
    value = 0.0
    for j in range(beta.size):
        value -= slots[j] * beta[j]
    for i in range(p.shape[0]):
        value -= sums[i] * alpha[i]
        for j in range(p.shape[1]):
            price = alpha[i] + beta[j]
            square = p[i, j] * p[i, j]
            value += 2.0 * math.sqrt(max(price, 0.0)) * p[i, j] if price > square else square + price * (square > 0.0)
    return value


@kernel(fastmath=FAST, error_model="numpy")
def second_moment(p: np.ndarray, r: np.ndarray) -> float:
    value = 0.0
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            value += p[i, j] * (p[i, j] / r[i, j]) if r[i, j] > 0.0 else 0.0
    return value
