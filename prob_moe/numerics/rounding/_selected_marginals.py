"""Compiled kernel of the minimum-variance marginals of several experts per datapoint: an interior-point method.

    minimise Σ p²/r   subject to   Σ_j r_ij = m_i,   Σ_i r_ij <= c_j,   0 < r_ij < 1.

With several experts the price α_i of a row may be negative, and sharp routers fill the last places of a row with
whichever expert is cheapest, at probabilities that p has nothing to say about: there r depends on digits of the prices
that float64 does not hold. So r is a variable of its own here. With multipliers z and g of its two bounds, and u, v for
the slack of columns and rows, each step solves the linearised optimality conditions of a perturbed problem; rows are
eliminated, which leaves k unknowns. p²/r is compatible with the barrier log r (|f'''| <= 3 f''/r), so steps stay long
whatever p is. Where rows need not be full, α is nonnegative and v is the slack; where experts have to be full, columns
are equalities.
Wright 1997, "Primal-dual interior-point methods", chapters 5 and 6; Nesterov & Nemirovskii 1994, chapter 3.
"""

import numpy as np

from prob_moe.numerics._compiled import kernel
from prob_moe.numerics._vectors import largest
from prob_moe.numerics.rounding._cholesky import solve_positive
from prob_moe.numerics.rounding._minimum_variance import FAST

TO_BOUNDARY = 0.98  # largest part of a variable that one step may take away
LEAST_ROOM = 1e-14  # of 1 − r


@kernel(fastmath=FAST)
def _eliminate_rows(
    p: np.ndarray,
    r: np.ndarray,
    z: np.ndarray,
    g: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    lack: np.ndarray,
    stiffness: np.ndarray,
    mu: float,
    hessian: np.ndarray,
    rhs: np.ndarray,
    weight: np.ndarray,
    shift: np.ndarray,
) -> None:
    """Schur complement of the step equations in the experts' prices.

    With W_ij the inverse curvature and q_ij the residual of an entry, its step is W (q − Δα_i − Δβ_j).

    :param lack: (n,) what the row's sum shall gain. :param stiffness: (n,) gain of the row's slack per unit of Δα.
    :param hessian: (k, k) out, lower triangle; :param rhs: (k,) out, what columns gain at Δβ = 0.
    :param weight: (n,) out, Σ_j W_ij + stiffness; :param shift: (n,) out, Δα at Δβ = 0.
    """
    n, k = p.shape
    hessian[:] = 0.0
    rhs[:] = 0.0
    w, wq = np.empty(k), np.empty(k)
    for i in range(n):
        total, gain = stiffness[i], -lack[i]
        for j in range(k):
            low = 1.0 / r[i, j]
            high = 1.0 / max(1.0 - r[i, j], LEAST_ROOM)
            slope = p[i, j] * low
            slope *= slope
            inverse = 1.0 / ((2.0 * slope + z[i, j]) * low + g[i, j] * high)
            w[j] = inverse if p[i, j] > 0.0 else 0.0
            wq[j] = w[j] * (slope - alpha[i] - beta[j] + mu * (low - high))
            total += w[j]
            gain += wq[j]
        weight[i] = total
        shift[i] = gain / total
        for j in range(k):
            rhs[j] += wq[j] - w[j] * shift[i]
            hessian[j, j] += w[j]
            factor = w[j] / total
            for l in range(j + 1):  # noqa: E741
                hessian[j, l] -= factor * w[l]


@kernel(fastmath=FAST)
def _entry_steps(
    p: np.ndarray,
    r: np.ndarray,
    z: np.ndarray,
    g: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    mu: float,
    weight: np.ndarray,
    shift: np.ndarray,
    beta_step: np.ndarray,
    r_step: np.ndarray,
    alpha_step: np.ndarray,
) -> float:
    """Steps of r and α; returns the largest rate at which one of r, 1 − r, z, g goes to its boundary."""
    n, k = p.shape
    fastest = 1e-300
    w = np.empty(k)
    for i in range(n):
        answer = 0.0
        for j in range(k):
            low = 1.0 / r[i, j]
            high = 1.0 / max(1.0 - r[i, j], LEAST_ROOM)
            slope = p[i, j] * low
            slope *= slope
            inverse = 1.0 / ((2.0 * slope + z[i, j]) * low + g[i, j] * high)
            w[j] = inverse if p[i, j] > 0.0 else 0.0
            answer += w[j] * beta_step[j]
            r_step[i, j] = slope - alpha[i] - beta[j] + mu * (low - high)
        change = shift[i] - answer / weight[i]
        alpha_step[i] = change
        for j in range(k):
            step = w[j] * (r_step[i, j] - change - beta_step[j])
            r_step[i, j] = step
            low = step / r[i, j]
            high = step / max(1.0 - r[i, j], LEAST_ROOM)
            z_rate = 1.0 + low - mu / (r[i, j] * z[i, j])
            g_rate = 1.0 - high - mu / (max(1.0 - r[i, j], LEAST_ROOM) * g[i, j])
            rate = max(max(-low, high), max(z_rate, g_rate))
            fastest = rate if rate > fastest and p[i, j] > 0.0 else fastest
    return fastest


@kernel(fastmath=FAST)
def _move_entries(
    p: np.ndarray, r: np.ndarray, z: np.ndarray, g: np.ndarray, r_step: np.ndarray, mu: float, size: float
) -> None:
    n, k = p.shape
    for i in range(n):
        for j in range(k):
            step = r_step[i, j]
            room = max(1.0 - r[i, j], LEAST_ROOM)
            z[i, j] += size * (mu / r[i, j] - z[i, j] - z[i, j] * (step / r[i, j]))
            g[i, j] += size * (mu / room - g[i, j] + g[i, j] * (step / room))
            r[i, j] += size * step


@kernel(fastmath=FAST)
def _sums(
    p: np.ndarray, r: np.ndarray, z: np.ndarray, g: np.ndarray, rows: np.ndarray, load: np.ndarray
) -> tuple[float, float]:
    """Row and column sums of r over allowed entries; returns Σ p²/r and Σ (r z + (1 − r) g)."""
    n, k = p.shape
    load[:] = 0.0
    value, slack = 0.0, 0.0
    for i in range(n):
        row = 0.0
        for j in range(k):
            entry = r[i, j] if p[i, j] > 0.0 else 0.0
            row += entry
            load[j] += entry
            value += p[i, j] * (p[i, j] / r[i, j])
            slack += entry * z[i, j] + ((1.0 - entry) * g[i, j] if p[i, j] > 0.0 else 0.0)
        rows[i] = row
    return value, slack


@kernel
def pin_constants(hessian: np.ndarray, group: np.ndarray) -> None:
    """Settle the constant up to which exact rows and columns leave prices free; the right side has no part of it."""
    k = group.size
    largest = 0.0
    for a in range(k):
        largest = max(largest, hessian[a, a])
    for a in range(k):
        if group[a]:
            hessian[a, a] += 1e-13 * largest
            for b in range(a + 1):
                hessian[a, b] += largest / k if group[b] else 0.0


@kernel
def _inner(a: np.ndarray, b: np.ndarray) -> float:
    total = 0.0
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@kernel
def _outside(values: np.ndarray, slack: np.ndarray, bounds: np.ndarray) -> float:
    """By how much a value and its slack miss their bound at most, in units of the largest bound."""
    worst = 0.0
    for i in range(values.size):
        worst = max(worst, abs(values[i] + slack[i] - bounds[i]))
    return worst / largest(bounds)


@kernel
def _move(values: np.ndarray, step: np.ndarray, size: float) -> None:
    for i in range(values.size):
        values[i] += size * step[i]


@kernel(only_caller=True)
def interior_point(
    p: np.ndarray,
    sums: np.ndarray,
    slots: np.ndarray,
    exact_rows: bool,
    full: np.ndarray,
    r: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
    tolerance: float,
    max_steps: int,
) -> int:
    """Improve r (n, k), α (n,) and β (k,) in place until the relative gap is down at the tolerance; the steps taken.

    :param p: (n, k), 0 where forbidden: r is ignored there. :param sums: (n,) m_i; :param slots: (k,) c_j.
    :param full: (k,) bool, the columns that are equalities.
    """
    n, k = p.shape
    rows, load = np.empty(n), np.empty(k)
    z, g = np.ones((n, k)), np.ones((n, k))
    value, _ = _sums(p, r, z, g, rows, load)
    allowed = 0
    for i in range(n):
        for j in range(k):
            allowed += p[i, j] > 0.0
    mu = value / allowed
    for i in range(n):
        for j in range(k):
            z[i, j] = mu / r[i, j]
            g[i, j] = mu / max(1.0 - r[i, j], LEAST_ROOM)
    v, stiffness, lack = np.zeros(n), np.zeros(n), np.empty(n)
    u, v_step, u_step = np.zeros(k), np.zeros(n), np.zeros(k)
    if not exact_rows:
        for i in range(n):
            alpha[i] = max(alpha[i], mu / max(sums[i] - rows[i], 0.1 * sums[i]))
            v[i] = mu / alpha[i]
    for j in range(k):
        if not full[j]:
            beta[j] = max(beta[j], mu / max(slots[j] - load[j], 0.1 * slots[j], 1e-3))
            u[j] = mu / beta[j]  # all products alike: a centred start
    hessian, rhs, beta_step = np.empty((k, k)), np.empty(k), np.empty(k)
    weight, shift, alpha_step, r_step = np.empty(n), np.empty(n), np.empty(n), np.empty((n, k))
    size, centring = 0.0, 0.5
    for steps in range(max_steps):
        value, slack = _sums(p, r, z, g, rows, load)
        terms = 2.0 * allowed
        if not exact_rows:
            slack += _inner(v, alpha)
            terms += n
        slack += _inner(u, beta)
        for j in range(k):
            terms += not full[j]
        outside = max(_outside(rows, v, sums), _outside(load, u, slots))
        if slack <= tolerance * value and outside <= max(1e-7, tolerance):
            return steps
        if steps > 0:
            centring = max(0.05, min((1.0 - size) ** 2, 0.7))
        mu = centring * slack / terms
        for i in range(n):
            lack[i] = sums[i] - rows[i]
            if not exact_rows:
                stiffness[i] = v[i] / alpha[i]
                lack[i] -= mu / alpha[i]
        _eliminate_rows(p, r, z, g, alpha, beta, lack, stiffness, mu, hessian, rhs, weight, shift)
        for j in range(k):
            rhs[j] -= slots[j] - load[j]
        pin_constants(hessian, full)
        for j in range(k):
            if not full[j]:
                rhs[j] += mu / beta[j]
                hessian[j, j] += u[j] / beta[j]
        solve_positive(hessian, rhs, beta_step)
        fastest = _entry_steps(p, r, z, g, alpha, beta, mu, weight, shift, beta_step, r_step, alpha_step)
        if not exact_rows:
            for i in range(n):
                v_step[i] = mu / alpha[i] - v[i] - v[i] / alpha[i] * alpha_step[i]
                fastest = max(fastest, -v_step[i] / v[i], -alpha_step[i] / alpha[i])
        for j in range(k):
            if not full[j]:
                u_step[j] = mu / beta[j] - u[j] - u[j] / beta[j] * beta_step[j]
                fastest = max(fastest, -u_step[j] / u[j], -beta_step[j] / beta[j])
        if not fastest < np.inf:
            return steps
        size = min(1.0, TO_BOUNDARY / fastest)
        _move_entries(p, r, z, g, r_step, mu, size)
        _move(alpha, alpha_step, size)
        _move(beta, beta_step, size)
        _move(v, v_step, size)
        _move(u, u_step, size)
    return max_steps
