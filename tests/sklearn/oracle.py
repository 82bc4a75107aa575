"""The oracle: expectation maximisation in plain numpy, as one would write it in an hour, from many starts at once."""

from math import lgamma

import numpy as np


def log_sum(a: np.ndarray, axis: int) -> np.ndarray:
    most = a.max(axis, keepdims=True)
    return most + np.log(np.exp(a - most).sum(axis, keepdims=True))


def expectation_maximisation(x, z, y, r, floor, max_iterations=3000, tolerance=1e-9, counts=False):
    """
    From responsibilities r (starts, k, n) to log-likelihoods (starts,) and whether a scale is at the floor; of normal
    laws, or of counts with rates exp(x'b), which have no scale.
    """
    (starts, k, n), p, q = r.shape, x.shape[1], z.shape[1]
    xx = (x[:, :, None] * x[:, None]).reshape(n, -1)
    zz = (z[:, :, None] * z[:, None]).reshape(n, -1)
    gamma, last, result = np.zeros((starts, k, q)), np.full(starts, -np.inf), np.full((2, starts), np.nan)
    moving, rate = np.arange(starts), np.broadcast_to(y + 0.5, r.shape)
    for _ in range(max_iterations):
        # Least squares; for counts of the working response, with its weights (Fisher scoring).
        weight, response = (r * rate, np.log(rate) + (y - rate) / rate) if counts else (r, y)
        gram = (weight @ xx).reshape(len(r), k, p, p) + 1e-10 * np.eye(p)
        beta = np.linalg.solve(gram, ((weight * response) @ x)[..., None])[..., 0]
        residuals, rate = y - beta @ x.T, np.exp((beta @ x.T).clip(-30, 30))
        scale = np.sqrt((r * residuals**2).sum(-1) / np.maximum(r.sum(-1), 1e-300)).clip(floor)[..., None]
        for _ in range(3):  # Newton for the router, one expert after the other
            for j in range(1, k):
                prior = np.exp(gamma @ z.T - log_sum(gamma @ z.T, 1))
                weight = prior[:, j] * (1 - prior[:, j]) + 1e-6
                step = np.linalg.solve(
                    (weight @ zz).reshape(-1, q, q) + 1e-10 * np.eye(q), ((r - prior)[:, j] @ z)[..., None]
                )
                gamma[:, j] += step[..., 0].clip(-2, 2)
        joint = gamma @ z.T - log_sum(gamma @ z.T, 1)
        if counts:
            joint = joint + y * np.log(rate) - rate - np.array([lgamma(each + 1) for each in y])
        else:
            joint = joint - 0.5 * (residuals / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
        total = log_sum(joint, 1)
        r, value = np.exp(joint - total), total.sum((1, 2))
        result[:, moving] = value, (scale <= floor * (1 + 1e-6)).any((1, 2)) & (not counts)
        going = value - last > tolerance
        moving, r, gamma, rate, last = moving[going], r[going], gamma[going], rate[going], value[going]
        if not len(moving):
            break
    return result[0], result[1] > 0


def starting_responsibilities(x, y, k, starts, generator):
    """Half of them random; in the others one expert has p random rows and the nearest to the line through these."""
    n, p = x.shape
    r = generator.exponential(size=(starts, k, n))
    for s in range(0, starts, 2):
        chosen = generator.choice(n, p, replace=False)
        line = np.linalg.lstsq(x[chosen], y[chosen], rcond=None)[0]
        nearest = np.argsort(abs(y - x @ line))[: generator.integers(p, max(n // k, p) + 1)]
        r[s, 0] = 0
        r[s][:, nearest] = 0
        r[s, 0, nearest] = 1
    return r / r.sum(1, keepdims=True)


def best_off_the_floor(columns, y, k, router, starts=200, seed=0, counts=False):
    """The best log-likelihood of a mixture with its scales off the floor; -inf if every start ended on it."""
    one = np.ones((len(y), 1))
    x = np.hstack([one, (columns - columns.mean(0)) / columns.std(0)])
    z, y_scale = (x if router == "linear" else one), 1.0 if counts else y.std()
    y = y if counts else (y - y.mean()) / y_scale
    residuals = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    r = starting_responsibilities(x, y, k, starts, np.random.default_rng(seed))
    values, floor = expectation_maximisation(x, z, y, r, 1e-3 * np.sqrt((residuals**2).mean()), counts=counts)
    return np.where(floor, -np.inf, values).max() - len(y) * np.log(y_scale)
