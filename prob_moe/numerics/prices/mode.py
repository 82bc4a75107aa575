"""Mode and curvature of the density of shadow prices in its coordinates, for a fixed assignment."""

import torch
from torch import Tensor

from prob_moe.numerics.prices.derivatives import coordinate_derivatives
from prob_moe.numerics.prices.problem import PriceProblem, in_chunks

STEP_SIZES = (1.0, 0.5, 0.2, 0.05, 0.01)
LONGEST_STEP = 8.0  # in any coordinate: far from the mode the quadratic model is worth little
LEAST_CURVATURE = 0.02  # no coordinate is spread wider than about 7


def find_mode(problem: PriceProblem, start: Tensor, max_steps: int = 40) -> tuple[Tensor, Tensor]:
    """Newton's method on the log-density of the coordinates, from the best of the prices ``start``, (starts, batch, k).

    The sum of log-softmaxes is concave, the log-determinant is not: negative curvatures count with their absolute value
    (saddle-free Newton; Dauphin et al. 2014), which always gives an ascent direction.

    :returns: mode u (batch, k), and the inverse curvature there (batch, k, k), the identity on fixed coordinates.
    """
    starts = problem.coordinates(start)
    value, which = torch.cat([problem.log_density(part) for part in in_chunks(starts, problem)]).max(0)
    point = starts.gather(0, which[None, :, None].expand(1, *problem.scale.shape)).squeeze(0)
    sizes = torch.tensor(STEP_SIZES, dtype=point.dtype, device=point.device)[:, None, None]
    for _ in range(max_steps):
        gradient, hessian = coordinate_derivatives(problem, point)
        curvature, axes = torch.linalg.eigh(-hessian)
        along = (axes.transpose(-1, -2) @ gradient.unsqueeze(-1)).squeeze(-1)
        scaled = along / curvature.abs().clamp(min=LEAST_CURVATURE)
        step = (axes @ scaled.unsqueeze(-1)).squeeze(-1)
        if bool(((along * scaled).sum(-1) < 1e-3).all()):
            break
        step = step / (step.abs().amax(-1, keepdim=True) / LONGEST_STEP).clamp(min=1.0)
        trials = point + sizes * step
        best, which = problem.log_density(trials).max(0)
        better = best > value
        if not bool(better.any()):
            break
        chosen = trials.gather(0, which[None, :, None].expand(1, *point.shape)).squeeze(0)
        point = torch.where(better.unsqueeze(-1), chosen, point)
        value = torch.where(better, best, value)
    return point, inverse_curvature(coordinate_derivatives(problem, point)[1])


def inverse_curvature(hessian: Tensor) -> Tensor:
    """−H⁻¹ with eigenvalues made positive, and no variance above 1 / LEAST_CURVATURE, (batch, k, k)."""
    curvature, axes = torch.linalg.eigh(-hessian)
    variance = 1 / curvature.abs().clamp(min=LEAST_CURVATURE)
    return (axes * variance.unsqueeze(-2)) @ axes.transpose(-1, -2)
