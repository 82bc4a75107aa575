"""Compiled kernel of the minimum-variance marginals of several experts per datapoint: the quick way, by prices alone.

The dual of ``minimise Σ p²/r subject to Σ_j r_ij = m_i, Σ_i r_ij <= c_j, r_ij <= 1`` is the concave function

    D(β) = Σ_ij d(p_ij, α_i + β_j) − Σ_i m_i α_i − Σ_j c_j β_j,    d(p, s) = 2 p sqrt(s), and p² + s where s <= p²,

with r_ij = p_ij / sqrt(max(α_i + β_j, p_ij²)) and each α_i the root of its row. Its gradient is continuous and its
curvature is not: an entry that is 1 has none. Newton's method with a tenth of the curvature that such an entry would
have beside its bound needs three to seven evaluations where rows are not too sharp, and stalls where they are:
who calls it looks at what came out, and asks the interior-point method instead.
Projected Newton steps: Bertsekas 1982, "Projected Newton methods for optimization problems with simple constraints".
"""

import math

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import copy
from prob_moe.numerics.rounding._cholesky import solve_positive
from prob_moe.numerics.rounding._minimum_variance import BLOCK, FAST, add_curvature, stretch

AT_BOUND = 0.1  # part of its curvature that an entry at its bound is credited with
MOST_FAILURES = 6  # trials of a step, shorter and shorter, after which this way has stalled
LEAST = 1e-300  # of a price under a root, where an expert is forbidden


@kernel(fastmath=FAST, error_model="numpy")
def _row_price(p: np.ndarray, beta: np.ndarray, wanted: float, start: float) -> float:
    """Root α of Σ_j p_j / sqrt(max(α + β_j, p_j²)) = m, to a relative 1e-4.

    Entry j is 1 up to α = p_j² − β_j, so the root is at or right of the m-th largest of these. Newton on the power −2
    of what is below 1, nearly linear in α; a step that leaves the interval halves it.
    """
    high = -np.inf
    ratio = p.size / wanted
    for j in range(p.size):
        high = max(high, (p[j] * ratio) ** 2 - beta[j])  # where all entries are at most m/k
    low, previous = np.inf, np.inf
    for _ in range(int(wanted)):
        low = -np.inf
        for j in range(p.size):
            turn = p[j] * p[j] - beta[j]
            low = max(low, turn if turn < previous else -np.inf)
        previous = low
    if not low > -np.inf:  # fewer different ones than that
        low = np.inf
        for j in range(p.size):
            low = min(low, -beta[j])
    alpha = min(max(start, low), high)
    for _ in range(40):
        ones, free, slope = 0.0, 0.0, 0.0
        for j in range(p.size):
            square = p[j] * p[j]
            price = alpha + beta[j]
            inverse = 1.0 / math.sqrt(max(price, square, LEAST))
            r = p[j] * inverse
            ones += 0.0 if price > square else r
            free += r if price > square else 0.0
            slope += r * inverse * inverse if price > square else 0.0
        excess = ones + free - wanted
        if abs(excess) <= 1e-4 * wanted:
            break
        if excess > 0.0:
            low = alpha
        else:
            high = alpha
        goal = wanted - ones
        following = alpha + free * ((free / goal) ** 2 - 1.0) / slope if goal > 0.0 and slope > 0.0 else np.inf
        alpha = following if low < following < high else 0.5 * (low + high)
    return alpha


@kernel(fastmath=FAST, error_model="numpy")
def _evaluate(
    p: np.ndarray,
    sums: np.ndarray,
    slots: np.ndarray,
    beta: np.ndarray,
    alpha: np.ndarray,
    load: np.ndarray,
    hessian: np.ndarray,
    stride: int,
) -> float:
    """Fill α, the column sums, and minus the second derivative in β (lower triangle) from one row in ``stride``; D."""
    n, k = p.shape
    load[:] = 0.0
    hessian[:] = 0.0
    block = np.zeros((BLOCK, k))
    totals = np.ones(BLOCK)
    waiting = 0
    dual = 0.0
    for j in range(k):
        dual -= slots[j] * beta[j]
    for i in range(n):
        a = _row_price(p[i], beta, sums[i], alpha[i])
        alpha[i] = a
        dual -= sums[i] * a
        curves = block[waiting]
        total = LEAST
        for j in range(k):
            square = p[i, j] * p[i, j]
            price = a + beta[j]
            inverse = 1.0 / math.sqrt(max(price, square, LEAST))
            r = p[i, j] * inverse
            load[j] += r
            dual += 2.0 * r * price if price > square else (square + price if square > 0.0 else 0.0)
            curves[j] = 0.5 * r * inverse * inverse * (1.0 if price > square else AT_BOUND)
            total += curves[j]
        if i % stride == 0:
            totals[waiting] = total
            waiting += 1
        if waiting == BLOCK or i == n - 1:  # at one place alone, as its code stands at each
            add_curvature(block, waiting, totals, hessian)
            waiting = 0
    stretch(hessian, stride)
    return dual


@kernel
def approach_prices(
    p: np.ndarray,
    sums: np.ndarray,
    slots: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    tolerance: float,
    least_gain: float,
    max_steps: int,
    stride: int,
) -> None:
    """Newton's method on D from (α, β), in place, until the relative overload is down at the tolerance and the gain
    that is expected of the next step at its least, relative to D; or it stalls."""
    k = p.shape[1]
    load, trial_load = np.empty(k), np.empty(k)
    hessian, trial_hessian = np.empty((k, k)), np.empty((k, k))
    gradient, step, trial, trial_alpha = np.zeros(k), np.zeros(k), np.empty(k), alpha.copy()
    dual, reached, size = 0.0, -np.inf, 0.0  # the first trial is the start itself
    evaluations = failures = 0
    while failures < MOST_FAILURES:
        gain = 0.0
        for j in range(k):
            trial[j] = max(0.0, beta[j] + size * step[j]) if evaluations > 0 else beta[j]
            gain += gradient[j] * (trial[j] - beta[j])
        copy(alpha, trial_alpha)
        # Called at one place alone: its code stands at each.
        trial_dual = _evaluate(p, sums, slots, trial, trial_alpha, trial_load, trial_hessian, stride)
        evaluations += 1
        if not trial_dual >= reached + 1e-4 * gain - 1e-12 * abs(dual):
            size *= 0.3
            failures += 1
            continue
        copy(trial, beta)
        copy(trial_alpha, alpha)
        load, trial_load = trial_load, load
        hessian, trial_hessian = trial_hessian, hessian
        dual = reached = trial_dual
        if evaluations >= max_steps:
            return
        top, overload, failures = 0.0, 0.0, 0
        for j in range(k):
            gradient[j] = load[j] - slots[j]
            top = max(top, hessian[j, j])
            overload = max(overload, gradient[j] / max(slots[j], 1.0))
        for j in range(k):
            if beta[j] <= 0.0 and gradient[j] <= 0.0:  # stays at its bound
                hessian[j, :j] = 0.0
                hessian[j + 1 :, j] = 0.0
                gradient[j] = 0.0
                hessian[j, j] = top
            else:
                hessian[j, j] += 1e-9 * top
        solve_positive(hessian, gradient, step)
        decrement = 0.0
        for j in range(k):
            decrement += gradient[j] * step[j]
        if overload <= 300.0 * tolerance and decrement <= least_gain * abs(dual):
            return
        size = 1.0


@kernel(fastmath=FAST, error_model="numpy")
def marginals_at(p: np.ndarray, alpha: np.ndarray, beta: np.ndarray, most: float, r: np.ndarray) -> None:
    """r (n, k) at these prices, entries at most ``most``: below 1, where a repair can still move them."""
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            price = max(alpha[i] + beta[j], p[i, j] * p[i, j], LEAST)
            r[i, j] = min(p[i, j] / math.sqrt(price), most)
