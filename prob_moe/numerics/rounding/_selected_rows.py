"""Which rows can have how many experts, and one whole problem of minimum-variance marginals from p to r."""

import math

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import copy, largest, select, smallest
from prob_moe.numerics.assignment._several import _hold_best, balance, first_prices
from prob_moe.numerics.rounding._minimum_variance import FAST, LOOSE, rows_per_curvature
from prob_moe.numerics.rounding._selected_marginals import interior_point
from prob_moe.numerics.rounding._selected_prices import approach_prices, marginals_at
from prob_moe.numerics.rounding._selected_repair import exact_sums, within_bounds

BLEND = 0.4  # part of the start that is even over the experts
QUICK_STEPS = 12  # evaluations after which the quick way has stalled
MOST = 1.0 - 1e-6  # that an entry is before the repair, which does not move what is 1
LEAST_TOLERANCE = 1e-11  # below, rounding undoes in the sums what a step gains


@kernel
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


@kernel
def _num_allowed(p: np.ndarray) -> int:
    count = 0
    for j in range(p.size):
        count += p[j] > 0.0
    return count


@kernel
def _start(
    p: np.ndarray, sums: np.ndarray, slots: np.ndarray, r: np.ndarray, alpha: np.ndarray, beta: np.ndarray
) -> None:
    """The optimum without capacity, blended with even marginals so that no entry is near a bound."""
    n, k = p.shape
    load = np.zeros(k)
    for i in range(n):
        allowed = _num_allowed(p[i])
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
def _dual(p: np.ndarray, sums: np.ndarray, slots: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> float:
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
def _second_moment(p: np.ndarray, r: np.ndarray) -> float:
    value = 0.0
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            value += p[i, j] * (p[i, j] / r[i, j]) if r[i, j] > 0.0 else 0.0
    return value


@kernel
def _by_prices(
    p: np.ndarray,
    sums: np.ndarray,
    slots: np.ndarray,
    full: np.ndarray,
    r: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    tolerance: float,
    max_steps: int,
) -> bool:
    """The quick way to r, α and β, in place, where all sums can be exact; whether that came near enough to the least.

    Judged by the gap of what the repair left, whatever the prices are. If not, nothing is changed.
    """
    n, k = p.shape
    row_prices, prices, found = alpha.copy(), beta.copy(), np.empty((n, k))
    stride = rows_per_curvature(n, k, tolerance)
    approach_prices(p, sums, slots, row_prices, prices, tolerance, min(QUICK_STEPS, max_steps), stride)
    marginals_at(p, row_prices, prices, MOST, found)
    exact_sums(found, sums, slots, full)
    load = np.zeros(k)
    for i in range(n):
        total = 0.0
        for j in range(k):
            total += found[i, j]
            load[j] += found[i, j]
        if not abs(total - sums[i]) <= 1e-9:
            return False
    for j in range(k):
        if not load[j] - slots[j] <= 1e-9 * max(slots[j], 1.0):
            return False
    moment = _second_moment(p, found)
    if not moment - _dual(p, sums, slots, row_prices, prices) <= 2.0 * tolerance * moment:
        return False
    for i in range(n):
        copy(found[i], r[i])
    copy(row_prices, alpha)
    copy(prices, beta)
    return True


@kernel
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
    load = np.zeros(k)
    for i in range(n):
        for j in range(k):
            load[j] += r[i, j]
    if largest(load) <= capacity * (1.0 + 1e-12):  # nobody has to give way
        beta[:] = 0.0
        return _second_moment(p, r), 0.0
    # Rows that take all experts which they are allowed are settled, if everybody can have what he wants.
    slots = np.full(k, capacity)
    total = 0
    rows = np.empty(n, np.int64)
    count = 0
    for i in range(n):
        if present[i]:
            allowed = _num_allowed(p[i])
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
    _start(q, wanted, room, inner, row_prices, beta)
    if smallest(warm) >= 0.0:
        copy(warm, beta)
    quick = exact and tolerance >= LOOSE
    if not (quick and _by_prices(q, wanted, room, full, inner, row_prices, beta, tolerance, max_steps)):
        least = max(tolerance, LEAST_TOLERANCE)
        interior_point(q, wanted, room, exact, full, inner, row_prices, beta, least, max_steps)
    if full.any():  # one price is free among full experts and their rows: the cheapest of them costs nothing
        lowest = np.inf
        for j in range(k):
            if full[j]:
                lowest = min(lowest, beta[j])
        for place in range(count):
            for j in range(k):
                if full[j] and q[place, j] > 0.0:
                    row_prices[place] += lowest
                    break
        for j in range(k):
            if full[j]:
                beta[j] -= lowest
    for place in range(count):
        for j in range(k):
            if not q[place, j] > 0.0:
                inner[place, j] = 0.0
    if exact:
        exact_sums(inner, wanted, room, full)
    within_bounds(inner, wanted, room)
    gap = max(_second_moment(q, inner) - _dual(q, wanted, room, row_prices, beta), 0.0)
    for place in range(count):
        for j in range(k):
            r[rows[place], j] = inner[place, j] + certain[place, j]
        alpha[rows[place]] = row_prices[place]
    if exact:
        for i in range(n):
            if present[i] and _num_allowed(p[i]) <= picks:  # settled: any low enough price will do
                lowest = np.inf
                for j in range(k):
                    if p[i, j] > 0.0:
                        lowest = min(lowest, p[i, j] * p[i, j] - beta[j])
                alpha[i] = lowest if lowest < np.inf else 0.0
    return _second_moment(p, r), gap
