"""Gaussian restricted to v ≥ 0 in some coordinates, drawn one coordinate after another, with an exact density.

The Geweke–Hajivassiliou–Keane recursion draws v = μ + C z with z_a from a normal truncated so that v_a ≥ 0 given z_1 …
z_{a−1}. It looks ahead at later bounds by shifting the means of z by a tilt γ, at the saddle point that minimises the
worst weight (Botev 2017, The normal law under linear restrictions, J. R. Stat. Soc. B 79). Any tilt is valid.
"""

import torch
from torch import Tensor

TILT_SWEEPS = 60
LOG_SQRT_TWO_PI = 0.9189385332046727


def log_hazard(point: Tensor) -> Tensor:
    """log of φ(x) / Φ(−x), the derivative of −log Φ(−x)."""
    return -0.5 * point.square() - LOG_SQRT_TWO_PI - torch.special.log_ndtr(-point)


class TruncatedGaussian:
    """Sequential sampler for N(mean, factor factorᵀ) on v_a ≥ 0 for the bounded coordinates a of a flat batch.

    :param mean: μ, which may lie outside the bounds, (batch, k).
    :param factor: lower Cholesky factor C of the covariance, (batch, k, k), the identity on fixed coordinates.
    :param free: coordinates that are drawn, the others are 0, (batch, k).
    :param bounded: coordinates restricted to v ≥ 0, (batch, k).
    """

    def __init__(self, mean: Tensor, factor: Tensor, free: Tensor, bounded: Tensor):
        self.mean, self.factor, self.free, self.bounded = mean, factor, free, bounded
        self.width = factor.diagonal(dim1=-2, dim2=-1)
        self.ahead = torch.tril(factor, -1) / self.width.unsqueeze(-1)
        self.tilt = self._saddle_point() if bool(bounded.any()) else torch.zeros_like(mean)

    def select(self, chosen: Tensor) -> "TruncatedGaussian":
        """The distributions at ``chosen``, an index or a mask."""
        return TruncatedGaussian(self.mean[chosen], self.factor[chosen], self.free[chosen], self.bounded[chosen])

    def _saddle_point(self) -> Tensor:
        """γ_a = Σ_{b>a} h_b C_ba / C_bb with hazards h_b = h(l_b − γ_b) on the path z = γ + h; damped iteration."""
        tilt, path = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        for _ in range(TILT_SWEEPS):
            low = self._low(path)
            hazard = torch.where(self.bounded, log_hazard(low - tilt).exp(), 0.0)
            path = 0.5 * path + 0.5 * (tilt + hazard)
            tilt = 0.5 * tilt + 0.5 * (hazard.unsqueeze(-2) @ self.ahead).squeeze(-2)
        usable = tilt.isfinite().all(-1, keepdim=True)
        return torch.where(usable, tilt, 0.0)

    def _low(self, path: Tensor) -> Tensor:
        """Lower bounds of z given the path so far, (\\*, k)."""
        return -self.mean / self.width - (self.ahead @ path.unsqueeze(-1)).squeeze(-1)

    def draw(self, uniforms: Tensor) -> Tensor:
        """Points (points, batch, k) from uniforms (points, k)."""
        plain = torch.special.ndtri(uniforms)
        path = torch.zeros(len(uniforms), *self.mean.shape, dtype=self.mean.dtype, device=self.mean.device)
        for a in range(self.mean.shape[-1]):
            shift, bounded = self.tilt[:, a], self.bounded[:, a]
            step = plain[:, a, None].expand_as(path[..., a])
            if bool(bounded.any()):
                before = (path[..., :a] * self.ahead[:, a, :a]).sum(-1)
                low = -self.mean[:, a] / self.width[:, a] - before - shift
                # 1 − u: monotone in u, like the quantile without bound.
                step = torch.where(bounded, _tail_quantile(1 - uniforms[:, a, None], low), step)
            path[..., a] = torch.where(self.free[:, a], step + shift, 0.0)
        points = self.mean + (self.factor @ path.unsqueeze(-1)).squeeze(-1)
        points = torch.where(self.bounded, points.clamp(min=0.0), points)
        return torch.where(self.free, points, 0.0)

    def log_prob(self, points: Tensor) -> Tensor:
        """Log-density with respect to the free coordinates, (points, batch, k) to (points, batch)."""
        offset = torch.where(self.free, points - self.mean, 0.0).movedim(0, -1)
        path = torch.linalg.solve_triangular(self.factor, offset, upper=False).movedim(-1, 0)
        low = path - points / self.width
        kept = torch.where(self.bounded, torch.special.log_ndtr(self.tilt - low), 0.0)
        normal = -0.5 * (path - self.tilt).square() - LOG_SQRT_TWO_PI - self.width.log()
        return torch.where(self.free, normal - kept, 0.0).sum(-1)


def _tail_quantile(tail: Tensor, low: Tensor) -> Tensor:
    """x with Φ(−x) = tail · Φ(−low): the quantile of a standard normal above ``low``, exact however far out."""
    near = -torch.special.ndtri(tail * torch.special.ndtr(-low.clamp(max=5.0)))
    log_tail = tail.log() + torch.special.log_ndtr(-low)
    far = (low.square() - 2 * tail.log()).sqrt()
    for _ in range(3):
        far = far + (torch.special.log_ndtr(-far) - log_tail) * (-log_hazard(far)).exp()
    return torch.where(low > 5.0, far, near)
