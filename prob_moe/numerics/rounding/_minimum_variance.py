"""Compiled kernel of the minimum-variance marginals: a barrier method on the dual, Newton on the experts' prices.

The dual of ``minimise Σ p²/r subject to row sums <= 1, column sums <= c`` is the concave function

    D(α, β) = Σ_ij 2 p_ij sqrt(α_i + β_j) − Σ_i α_i − c Σ_j β_j,       α, β >= 0,

with r_ij = p_ij / sqrt(α_i + β_j). Sharp routers make its curvature change by many orders of magnitude next to the
boundary, where Newton on D alone stalls. D + μ (Σ_i log α_i + Σ_j log β_j) has no boundary: the square roots are
compatible with the logarithm (|f'''| <= 3/2 f''/(α + β)), so damped Newton steps converge at a rate that does not
depend on the data, and the slack that is left is μ / price. μ falls superlinearly. Given β, each α_i is a
one-dimensional root, so the Newton system has k unknowns.
Interior-point theory: Nesterov & Nemirovskii 1994, chapters 2 and 5.
"""

import math

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import copy, largest, smallest
from prob_moe.numerics.rounding._cholesky import solve_positive

# Lets sums over experts vectorise; keeps nan and inf honest. So does numpy's division, which looks at no divisor.
FAST = {"reassoc", "contract", "arcp", "nsz"}
BLOCK = 4  # rows that are added to the Hessian at once: each of its entries is read and written once for them all
COLD_BARRIER, WARM_BARRIER = 1e-2, 1e-4
LOOSE = 1e-4  # tolerance from which on a rough curvature serves as well
MOST_FAILURES = 20  # trials of a step, shorter and shorter, after which rounding is all that is left
TO_BOUNDARY = 0.99  # largest part of a price that one step may take away


@kernel
def rows_per_curvature(n: int, k: int, tolerance: float) -> int:
    """Of how many rows one enters the Hessian: 16 k rows tell it well enough for a loose tolerance."""
    return min(8, max(1, n // (16 * k))) if tolerance >= LOOSE else 1


@kernel(fastmath=FAST, error_model="numpy")
def _row_price(p: np.ndarray, beta: np.ndarray, mu: float, start: float) -> float:
    """Root α of Σ_j p_j / sqrt(α + β_j) + μ/α = 1, to a relative 1e-6.

    Newton on the reciprocal of the left side, which is concave and increasing in α: monotone from the left, and a
    start on the right crosses over once.
    """
    low = 0.0
    for j in range(p.size):
        low += p[j] * beta[j]
    low = max(mu, 1.0 - low)  # Jensen: the root is at or right of 1 − Σ_j p_j β_j
    alpha = max(start, low)
    for _ in range(60):
        roots = 0.0
        curve = 0.0
        for j in range(p.size):
            inverse = 1.0 / math.sqrt(alpha + beta[j])
            r = p[j] * inverse
            roots += r
            curve += r * inverse * inverse
        total = roots + mu / alpha
        slope = 0.5 * curve + mu / (alpha * alpha)
        previous = alpha
        alpha = max(alpha + total * (total - 1.0) / slope, low, 0.1 * alpha)
        if abs(alpha - previous) <= 1e-3 * alpha:  # quadratic: the next one would be 1e-6
            break
    return alpha


@kernel(fastmath=FAST, error_model="numpy")
def add_curvature(block: np.ndarray, waiting: int, totals: np.ndarray, hessian: np.ndarray) -> None:
    """Add minus the second derivative of BLOCK rows, the first ``waiting`` of which are there, and whose own prices
    answer a change of β: Schur complements."""
    for row in range(waiting, BLOCK):
        for j in range(hessian.shape[0]):
            block[row, j] = 0.0
    for j in range(hessian.shape[0]):
        a, b, c, d = block[0, j], block[1, j], block[2, j], block[3, j]
        hessian[j, j] += a + b + c + d
        a, b, c, d = a / totals[0], b / totals[1], c / totals[2], d / totals[3]
        for m in range(j + 1):
            hessian[j, m] -= a * block[0, m] + b * block[1, m] + c * block[2, m] + d * block[3, m]


@kernel(fastmath=FAST, error_model="numpy")
def stretch(hessian: np.ndarray, stride: int) -> None:
    """Count every row for ``stride``, lower triangle."""
    for j in range(hessian.shape[0]):
        for m in range(j + 1):
            hessian[j, m] *= stride


@kernel(fastmath=FAST, error_model="numpy")
def _evaluate(
    p: np.ndarray,
    present: np.ndarray,
    beta: np.ndarray,
    capacity: float,
    mu: float,
    alpha: np.ndarray,
    load: np.ndarray,
    hessian: np.ndarray,
    drift: np.ndarray,
    stride: int,
) -> tuple[float, float]:
    """Everything the outer iteration needs at β, the rows' prices solved for.

    Fills α, the column sums Σ_i r_ij, minus the second derivative in β (lower triangle, without the experts' barrier)
    and minus the derivative of the column sums in μ, these two from one row in ``stride``. Returns D and
    Σ_i log α_i + Σ_j log β_j.
    """
    n, k = p.shape
    load[:] = 0.0
    hessian[:] = 0.0
    drift[:] = 0.0
    block = np.zeros((BLOCK, k))
    totals = np.ones(BLOCK)
    waiting = 0
    dual = 0.0
    logs = 0.0
    for j in range(k):
        dual -= capacity * beta[j]
        logs += math.log(beta[j])
    for i in range(n):
        if not present[i]:
            continue
        a = _row_price(p[i], beta, mu, alpha[i])
        alpha[i] = a
        dual -= a
        logs += math.log(a)
        if i % stride > 0:
            for j in range(k):
                r = p[i, j] / math.sqrt(a + beta[j])
                load[j] += r
                dual += 2.0 * r * (a + beta[j])
            continue
        total = mu / (a * a)
        s = block[waiting]
        for j in range(k):
            inverse = 1.0 / math.sqrt(a + beta[j])
            r = p[i, j] * inverse
            load[j] += r
            dual += 2.0 * r * (a + beta[j])
            s[j] = 0.5 * r * inverse * inverse
            total += s[j]
        totals[waiting] = total
        share = 1.0 / (total * a)
        for j in range(k):
            drift[j] += s[j] * share
        waiting += 1
        if waiting == BLOCK:
            add_curvature(block, waiting, totals, hessian)
            waiting = 0
    add_curvature(block, waiting, totals, hessian)
    stretch(hessian, stride)
    for j in range(k):
        drift[j] *= stride
    return dual, logs


@kernel(only_caller=True)
def solve_prices(
    p: np.ndarray,
    present: np.ndarray,
    capacity: float,
    alpha: np.ndarray,
    beta: np.ndarray,
    tolerance: float,
    max_steps: int,
) -> tuple[float, int]:
    """Follow the barrier path, (α, β) in place, until μ, the overload and the expected gain are down at the tolerance.

    A negative β asks for the cold start; any other is the start itself. Returns D and the number of evaluations.
    """
    k = p.shape[1]
    load, trial_load = np.zeros(k), np.empty(k)
    hessian, trial_hessian = np.empty((k, k)), np.empty((k, k))
    drift, trial_drift = np.empty(k), np.empty(k)
    gradient, step, trial = np.empty(k), np.zeros(k), np.empty(k)
    for i in range(p.shape[0]):
        for j in range(k):
            load[j] += p[i, j]
    if largest(load) <= capacity * (1.0 + 1e-12):  # the router is balanced as it is: r = p, weights exactly 1
        alpha[:] = 1.0
        beta[:] = 0.0
        return float(present.sum()), 0
    stride = rows_per_curvature(p.shape[0], k, tolerance)
    cold = smallest(beta) < 0.0
    mu = COLD_BARRIER if cold else max(WARM_BARRIER, tolerance)
    for j in range(k):  # the cold start is exact where all α_i = 1
        beta[j] = max((load[j] / capacity) ** 2 - 1.0, mu) if cold else max(beta[j], mu / capacity)
    trial_alpha = alpha.copy()
    dual, reached, decrement, size = 0.0, -np.inf, 0.0, 0.0  # the first trial is the start itself
    evaluations = failures = 0
    while failures < MOST_FAILURES:
        for j in range(k):
            trial[j] = beta[j] + size * step[j]
        copy(alpha, trial_alpha)
        trial_dual, trial_logs = _evaluate(  # called at one place alone: its code stands at each
            p, present, trial, capacity, mu, trial_alpha, trial_load, trial_hessian, trial_drift, stride
        )
        evaluations += 1
        if not trial_dual + mu * trial_logs >= reached + 1e-4 * size * decrement - 1e-12 * abs(dual):
            size *= 0.3
            failures += 1
            continue
        copy(trial, beta)
        copy(trial_alpha, alpha)
        load, trial_load = trial_load, load
        hessian, trial_hessian = trial_hessian, hessian
        drift, trial_drift = trial_drift, drift
        dual, logs, solved_mu, failures = trial_dual, trial_logs, mu, 0
        if size > 0.6:
            mu = max(tolerance, min(0.02 * mu, mu**1.7))
        if evaluations >= max_steps:
            break
        decrement = 0.0
        excess = 0.0
        size = 1.0
        for j in range(k):
            excess = max(excess, load[j] / capacity - 1.0)
            gradient[j] = load[j] - capacity + mu / beta[j] + (solved_mu - mu) * drift[j]
            hessian[j, j] += max(capacity - load[j], mu / beta[j]) / beta[j]  # primal-dual: slack over price
        solve_positive(hessian, gradient, step)
        for j in range(k):
            decrement += gradient[j] * step[j]
            if step[j] < 0.0:
                size = min(size, -TO_BOUNDARY * beta[j] / step[j])
        if mu <= tolerance and excess <= 30.0 * tolerance and decrement <= 0.05 * tolerance * abs(dual):
            break
        reached = dual + mu * logs
    return dual, evaluations


@kernel(fastmath=FAST, error_model="numpy")
def feasible_marginals(
    p: np.ndarray, present: np.ndarray, capacity: float, alpha: np.ndarray, beta: np.ndarray, r: np.ndarray
) -> float:
    """Marginals at these prices, made feasible whatever the convergence; returns Σ p²/r.

    Rows, then columns, are scaled down to their bounds. What rows still lack then goes to columns that have room,
    in proportion to both: no sum leaves its bound, and a larger r only lowers Σ p²/r.
    """
    n, k = p.shape
    scale, room = np.zeros(k), np.zeros(k)
    lack = np.zeros(n)
    for i in range(n):
        if not present[i]:
            r[i] = 0.0
            continue
        total = 0.0
        for j in range(k):
            entry = p[i, j] / math.sqrt(alpha[i] + beta[j])
            r[i, j] = entry
            total += entry
        factor = 1.0 / max(1.0, total)
        for j in range(k):
            r[i, j] *= factor
            scale[j] += r[i, j]
    for j in range(k):
        scale[j] = 1.0 / max(1.0, scale[j] / capacity)
    for i in range(n):
        if present[i]:
            total = 0.0
            for j in range(k):
                entry = r[i, j] * scale[j]
                r[i, j] = entry
                room[j] += entry
                total += entry
            lack[i] = max(1.0 - total, 0.0)
    for j in range(k):
        room[j] = max(capacity - room[j], 0.0)
    rate = 1.0 / max(lack.sum(), room.sum(), 1e-300)
    value = 0.0
    for i in range(n):
        gain = lack[i] * rate
        for j in range(k):
            entry = r[i, j] + (gain * room[j] if r[i, j] > 0.0 else 0.0)
            r[i, j] = entry
            value += p[i, j] * (p[i, j] / entry) if entry > 0.0 else 0.0
    return value
