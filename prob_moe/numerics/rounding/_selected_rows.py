"""Which rows can have how many experts, and one whole problem of minimum-variance marginals from p to r."""

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import copy, largest, smallest
from prob_moe.numerics.assignment._several import _hold_best, balance, first_prices
from prob_moe.numerics.rounding._selected_marginals import interior_point
from prob_moe.numerics.rounding._selected_problem import (
    dual_value,
    first_marginals,
    fits,
    free_one_price,
    num_allowed,
    second_moment,
)
from prob_moe.numerics.rounding._selected_repair import exact_sums, within_bounds

LEAST_TOLERANCE = 1e-11  # below, rounding undoes in the sums what a step gains


@kernel(only_caller=True)
def _structure(p: np.ndarray, wanted: np.ndarray, slots: np.ndarray, certain: np.ndarray, full: np.ndarray) -> bool:
    """Whether some r with r > 0 wherever p > 0 fills all rows within ``slots``; and what all such r have in common.

    From any 0/1 matrix that fills the rows, exchanges lead to all others, and the average of all is positive wherever
    one of them is.

    :param certain: (n, k) out, the entries that are 1 in all; :param full: (k,) out, the experts that are full in all.
    """
    n, k = p.shape
    certain[:] = False
    full[:] = wanted.sum() == slots.sum()
    scores, forbids = np.empty((n, k)), False
    for i in range(n):
        for j in range(k):
            forbids |= p[i, j] == 0.0
            scores[i, j] = 0.0 if p[i, j] > 0.0 else -np.inf
    if not forbids and smallest(slots) == largest(slots):
        return bool(wanted.sum() <= slots.sum())  # the even one
    rows = np.arange(n)
    hold = np.zeros((n, k), np.bool_)
    prices = first_prices(scores, rows, wanted, slots, 0.0)
    costs, movers = np.empty((k + 1, k + 1)), np.empty((k + 1, k + 1), np.int64)
    if not _hold_best(scores, rows, wanted, prices, hold) or not balance(
        scores, rows, hold, slots, prices, costs, movers
    ):
        return False
    reach = np.zeros((k, k), np.bool_)  # [b, a]: whether exchanges that begin with one more at b make a place at a
    for a in range(k):
        reach[a, a] = True
    room = slots.copy()
    for i in range(n):
        for a in range(k):
            if hold[i, a]:
                room[a] -= 1
                for b in range(k):
                    reach[a, b] |= p[i, b] > 0.0 and not hold[i, b]
    for j in range(k):
        for a in range(k):
            if reach[a, j]:
                for b in range(k):
                    reach[a, b] |= reach[j, b]
    for a in range(k):
        full[a] = True
        for b in range(k):
            full[a] &= not (reach[a, b] and room[b] > 0)
    for i in range(n):
        for a in range(k):
            if hold[i, a]:
                certain[i, a] = True
                for b in range(k):
                    if p[i, b] > 0.0 and not hold[i, b]:
                        certain[i, a] &= not (reach[b, a] or not full[b])
            elif p[i, a] > 0.0:
                usable = not full[a]
                for b in range(k):
                    usable |= hold[i, b] and reach[a, b]
                if not usable:
                    return False
    return True


@kernel(only_caller=True)
def solve_selected(
    p: np.ndarray,
    present: np.ndarray,
    capacity: int,
    picks: int,
    alpha: np.ndarray,
    beta: np.ndarray,
    r: np.ndarray,
    tolerance: float,
    max_steps: int,
) -> tuple[float, float]:
    """One problem: p (n, k), in α the rows' prices and in r the optimum, both without capacity; α, β and r in place.

    A negative β asks for the cold start. Returns Σ p²/r, and how far it may be above the least.
    """
    n, k = p.shape
    if fits(r, capacity):
        beta[:] = 0.0
        return second_moment(p, r), 0.0
    # Rows that take all experts which they are allowed are settled, if everybody can have what he wants.
    slots = np.full(k, capacity)
    total = 0
    rows = np.empty(n, np.int64)
    count = 0
    for i in range(n):
        if present[i]:
            allowed = num_allowed(p[i])
            total += min(allowed, picks)
            if allowed <= picks:
                for j in range(k):
                    slots[j] -= p[i, j] > 0.0
            else:
                rows[count] = i
                count += 1
    rows = rows[:count]
    exact = total <= k * capacity and smallest(slots) >= 0
    sums = np.full(count, picks)
    certain, full = np.zeros((count, k), np.bool_), np.zeros(k, np.bool_)
    if exact:
        exact = _structure(p[rows], sums, slots, certain, full)
    if exact:
        free = np.zeros(count, np.bool_)
        for place in range(count):
            for j in range(k):
                sums[place] -= certain[place, j]
                slots[j] -= certain[place, j]
                r[rows[place], j] = 1.0 if certain[place, j] else 0.0
            free[place] = sums[place] > 0
        rows, sums, certain = rows[free], sums[free], certain[free]
    else:
        slots[:] = capacity
        rows = np.flatnonzero(present)
        sums, certain = np.full(rows.size, picks), np.zeros((rows.size, k), np.bool_)
        full[:] = False
    count = rows.size
    room, wanted = slots.astype(np.float64), sums.astype(np.float64)
    q = p[rows]
    for place in range(count):
        for j in range(k):
            if certain[place, j]:
                q[place, j] = 0.0
    inner, row_prices, warm = np.empty((count, k)), alpha[rows], beta.copy()
    first_marginals(q, wanted, room, inner, row_prices, beta)
    if smallest(warm) >= 0.0:
        copy(warm, beta)
    least = max(tolerance, LEAST_TOLERANCE)
    interior_point(q, wanted, room, exact, full, inner, row_prices, beta, least, max_steps)
    if full.any():
        free_one_price(q, full, row_prices, beta)
    for place in range(count):
        for j in range(k):
            if not q[place, j] > 0.0:
                inner[place, j] = 0.0
    if exact:
        exact_sums(inner, wanted, room, full)
    within_bounds(inner, wanted, room)
    gap = max(second_moment(q, inner) - dual_value(q, wanted, room, row_prices, beta), 0.0)
    for place in range(count):
        for j in range(k):
            r[rows[place], j] = inner[place, j] + certain[place, j]
        alpha[rows[place]] = row_prices[place]
    if exact:
        for i in range(n):
            if present[i] and num_allowed(p[i]) <= picks:  # settled: any low enough price will do
                lowest = np.inf
                for j in range(k):
                    if p[i, j] > 0.0:
                        lowest = min(lowest, p[i, j] * p[i, j] - beta[j])
                alpha[i] = lowest if lowest < np.inf else 0.0
    return second_moment(p, r), gap
