"""Marginals of several experts per datapoint made feasible, whatever the solver left."""

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import copy
from prob_moe.numerics.rounding._cholesky import solve_positive
from prob_moe.numerics.rounding._minimum_variance import BLOCK, FAST, add_curvature
from prob_moe.numerics.rounding._selected_marginals import pin_constants

LEAST = 1e-300  # of a sum by which is divided
QUICK = 0.1  # part of the error that a step leaves at most, as long as the curvature is not computed again


@kernel(fastmath=FAST)
def _weigh(r: np.ndarray, lack: np.ndarray, gain: np.ndarray, weight: np.ndarray) -> None:
    """Fill ``weight`` (n,), the sums of h over a row, and take from ``gain`` (k,) what rows bring when they are
    mended."""
    n, k = r.shape
    for i in range(n):
        total = LEAST
        for j in range(k):
            total += max(r[i, j] * (1.0 - r[i, j]), 0.0)
        weight[i] = total
        share = lack[i] / total
        for j in range(k):
            gain[j] -= max(r[i, j] * (1.0 - r[i, j]), 0.0) * share


@kernel(fastmath=FAST)
def _curvature(r: np.ndarray, weight: np.ndarray, hessian: np.ndarray) -> None:
    """What columns gain when x moves, with rows that keep their sums: (k, k), lower triangle."""
    n, k = r.shape
    hessian[:] = 0.0
    block, totals = np.zeros((BLOCK, k)), np.ones(BLOCK)
    waiting = 0
    for i in range(n):
        for j in range(k):
            block[waiting, j] = max(r[i, j] * (1.0 - r[i, j]), 0.0)
        totals[waiting] = weight[i]
        waiting += 1
        if waiting == BLOCK or i == n - 1:
            add_curvature(block, waiting, totals, hessian)
            waiting = 0


@kernel
def exact_sums(r: np.ndarray, sums: np.ndarray, slots: np.ndarray, full: np.ndarray) -> None:
    """Move r in place so that every row has its sum and no column exceeds its slots.

    The entries change by h_ij (y_i + x_j) with h = r (1 − r), the least change in that metric. What columns have too
    much goes to those with room, in proportion; ``full`` ones (k,) get what they have slots for. A change that would
    take more than half of an entry is cut short and repeated.
    """
    n, k = r.shape
    load, lack, gain, target = np.empty(k), np.empty(n), np.empty(k), np.empty(k)
    curvature, hessian, x, y, weight = np.empty((k, k)), np.empty((k, k)), np.empty(k), np.empty(n), np.empty(n)
    open_columns = np.empty(k, np.bool_)
    for j in range(k):
        open_columns[j] = not full[j]
    previous = np.inf
    for step in range(60):
        load[:] = 0.0
        worst = 0.0
        for i in range(n):
            total = 0.0
            for j in range(k):
                load[j] += r[i, j]
                total += r[i, j]
            lack[i] = sums[i] - total
            worst = max(worst, abs(lack[i]) / sums[i])
        for j in range(k):
            worst = max(worst, (load[j] - slots[j]) / max(slots[j], 1.0))
        if worst <= 1e-15 * k or (worst <= 1e-12 and worst > 0.5 * previous):  # the rest is rounding
            break
        anew = step == 0 or worst > QUICK * previous
        previous = worst
        for j in range(k):
            target[j] = slots[j] if full[j] else min(load[j], slots[j])
        missing = 0.0
        for i in range(n):
            missing += sums[i]
        room, others = 0.0, LEAST
        for j in range(k):
            missing -= target[j]
            others += 0.0 if full[j] else target[j]
            room += slots[j] - target[j] if load[j] > 0.0 else 0.0
        for j in range(k):
            if missing > 0.0 and load[j] > 0.0:
                target[j] += (slots[j] - target[j]) * min(1.0, missing / max(room, LEAST))
            elif missing < 0.0 and not full[j]:
                target[j] *= 1.0 + missing / others
        for j in range(k):
            gain[j] = target[j] - load[j]
        _weigh(r, lack, gain, weight)
        if anew:
            _curvature(r, weight, curvature)
            pin_constants(curvature, full)
            pin_constants(curvature, open_columns)
        for j in range(k):
            copy(curvature[j], hessian[j])
        solve_positive(hessian, gain, x)
        reach = 0.0
        for i in range(n):
            answer = 0.0
            for j in range(k):
                answer += max(r[i, j] * (1.0 - r[i, j]), 0.0) * x[j]
            y[i] = (lack[i] - answer) / weight[i]
            for j in range(k):
                if 0.0 < r[i, j] < 1.0:
                    reach = max(reach, abs(y[i] + x[j]))
        if not reach < np.inf:
            break
        size = min(1.0, 0.5 / max(reach, LEAST))
        for i in range(n):
            for j in range(k):
                h = max(r[i, j] * (1.0 - r[i, j]), 0.0)
                r[i, j] = min(r[i, j] + size * h * (y[i] + x[j]), 1.0)


@kernel
def within_bounds(r: np.ndarray, sums: np.ndarray, slots: np.ndarray) -> None:
    """Scale rows, then columns, down to their bounds, in place: what is left out is dropped."""
    n, k = r.shape
    for i in range(n):
        total = 0.0
        for j in range(k):
            r[i, j] = min(r[i, j], 1.0)
            total += r[i, j]
        if total > sums[i]:
            for j in range(k):
                r[i, j] *= sums[i] / total
    for j in range(k):
        total = 0.0
        for i in range(n):
            total += r[i, j]
        if total > slots[j]:
            for i in range(n):
                r[i, j] *= slots[j] / total
