"""The second-order finish: Newton's method with damping, many at once, within bounds of some parameters."""

from typing import NamedTuple

import torch
from torch import Tensor

from prob_moe.sklearn.derivatives import derivatives
from prob_moe.sklearn.problem import Problem


class Finish(NamedTuple):
    """
    :param vectors: (R, D).
    :param values: penalised log-likelihoods, nats, (R,).
    :param converged: whether a further step promises next to nothing, (R,).
    """

    vectors: Tensor
    values: Tensor
    converged: Tensor


def newton(problem: Problem, vectors: Tensor, *, max_iterations: int = 100, tolerance: float = 1e-9) -> Finish:
    """
    Maximise the penalised log-likelihood from where expectation maximisation has got to; no step lowers it.

    The damping grows until the information is positive definite and the step gains (Levenberg and Marquardt).

    :param tolerance: nats that an undamped step may promise at rest.
    """
    lower, upper = problem.lower, problem.upper
    result, converged = vectors.clone(), torch.zeros(len(vectors), dtype=torch.bool)
    values = problem.value(vectors)
    moving = torch.arange(len(vectors))
    damping = torch.full_like(values, 1e-3)
    for _ in range(max_iterations):
        x = result[moving]
        gradient, hessian, complete = derivatives(problem, x)
        held = ((x <= lower) & (gradient <= 0)) | ((x >= upper) & (gradient >= 0))
        gradient = gradient.masked_fill(held, 0.0)
        information = -hessian.masked_fill(held.unsqueeze(-1) | held.unsqueeze(-2), 0.0)
        scale = torch.maximum(complete, torch.diagonal(information, dim1=-2, dim2=-1).abs())
        scale = scale.clamp(min=1e-12).masked_fill(held, 1.0)
        information = information + torch.diag_embed(held.to(x.dtype))
        step, damping[moving] = _damped(information, scale, gradient, damping[moving])
        promise = (gradient * step).sum(-1) / 2
        moved = torch.minimum(torch.maximum(x + step, lower), upper)
        value = problem.value(moved)
        better = value >= values[moving] + 1e-4 * promise.clamp(max=1e-6)
        at_rest = (promise < tolerance) & (damping[moving] <= 1e-3)
        accepted = better | (at_rest & (value > values[moving]))
        result[moving] = torch.where(accepted.unsqueeze(-1), moved, x)
        values[moving] = torch.where(accepted, value, values[moving])
        damping[moving] = torch.where(better, damping[moving] / 10, damping[moving].clamp(min=1e-6) * 10)
        converged[moving] = at_rest
        lost = damping[moving] > 1e12
        moving = moving[~at_rest & ~lost]
        if not len(moving):
            break
    return Finish(result, values, converged)


def _damped(information: Tensor, scale: Tensor, gradient: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Steps, and the damping by which the information became positive definite."""
    # In units of the scale, so that roundings of one parameter do not hide another.
    root = scale.rsqrt()
    information = information * root.unsqueeze(-1) * root.unsqueeze(-2)
    identity = torch.eye(information.shape[-1], dtype=information.dtype)
    right = (gradient * root).unsqueeze(-1)
    while True:
        factor, failed = torch.linalg.cholesky_ex(information + damping[:, None, None] * identity)
        if not bool((failed > 0).any()):
            return torch.cholesky_solve(right, factor).squeeze(-1) * root, damping
        damping = torch.where(failed > 0, damping.clamp(min=1e-6) * 10, damping)
