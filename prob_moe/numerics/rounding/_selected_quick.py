"""One problem of minimum-variance marginals of several experts per datapoint by prices alone, where that is enough."""

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import copy, smallest
from prob_moe.numerics.rounding._minimum_variance import rows_per_curvature
from prob_moe.numerics.rounding._selected_prices import approach_prices, marginals_at
from prob_moe.numerics.rounding._selected_problem import (
    dual_value,
    first_marginals,
    fits,
    free_one_price,
    num_allowed,
    second_moment,
)
from prob_moe.numerics.rounding._selected_repair import exact_sums, within_bounds

QUICK_STEPS = 12  # evaluations after which the quick way has stalled
#: parts of the tolerance that a step has to gain, or none is taken: the gap that is left is seen only afterwards, and
#: mostly is far below what the first allows
GAINS = (0.5, 0.05)
MOST = 1.0 - 1e-6  # that an entry is before the repair, which does not move what is 1
EXACT = 1e-9  # relative error of a sum


@kernel
def _sums_hold(r: np.ndarray, sums: np.ndarray, slots: np.ndarray) -> bool:
    """Whether every row has its sum, and no column is beyond its slots."""
    hold = True
    load = np.zeros(r.shape[1])
    for i in range(r.shape[0]):
        total = 0.0
        for j in range(r.shape[1]):
            total += r[i, j]
            load[j] += r[i, j]
        hold &= abs(total - sums[i]) <= EXACT
    for j in range(r.shape[1]):
        hold &= load[j] - slots[j] <= EXACT * max(slots[j], 1.0)
    return hold


@kernel(only_caller=True)
def solve_quickly(
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
    """As :func:`~prob_moe.numerics.rounding._selected_rows.solve_selected`, for a loose tolerance, no expert forbidden
    to anybody and room for all: then some r fills all rows, and rows of k experts fill all that they have.

    The gap is judged of what the repair left, whatever the prices are; nan where this way did not come near enough to
    the least, or is none: then nothing is changed.
    """
    n, k = p.shape
    if fits(r, capacity):
        beta[:] = 0.0
        return second_moment(p, r), 0.0
    rows = np.empty(n, np.int64)
    count = 0
    for i in range(n):
        if present[i]:
            rows[count] = i
            count += 1
            if num_allowed(p[i]) < k:
                return np.nan, np.nan
    if picks == k or count * picks > k * capacity:
        return np.nan, np.nan
    q, row_prices, prices = np.empty((count, k)), np.empty(count), np.empty(k)
    sums, slots, full = np.empty(count), np.empty(k), np.empty(k, np.bool_)
    for place in range(count):
        copy(p[rows[place]], q[place])
        row_prices[place] = alpha[rows[place]]
        sums[place] = picks
    for j in range(k):
        prices[j] = beta[j]
        slots[j] = capacity
        full[j] = count * picks == k * capacity
    found = np.empty((count, k))
    first_marginals(q, sums, slots, found, row_prices, prices)
    if smallest(beta) >= 0.0:
        copy(beta, prices)
    stride = rows_per_curvature(count, k, tolerance)
    moment, gap, most = 0.0, np.inf, min(QUICK_STEPS, max_steps)
    for share in GAINS:
        approach_prices(q, sums, slots, row_prices, prices, tolerance, share * tolerance, most, stride)
        marginals_at(q, row_prices, prices, MOST, found)
        exact_sums(found, sums, slots, full)
        moment = second_moment(q, found)
        gap = moment - dual_value(q, sums, slots, row_prices, prices)
        if gap <= 2.0 * tolerance * moment:
            break
    if not (gap <= 2.0 * tolerance * moment and _sums_hold(found, sums, slots)):
        return np.nan, np.nan
    within_bounds(found, sums, slots)
    if full[0]:
        free_one_price(q, full, row_prices, prices)
    for place in range(count):
        copy(found[place], r[rows[place]])
        alpha[rows[place]] = row_prices[place]
    copy(prices, beta)
    return moment, max(gap, 0.0)
