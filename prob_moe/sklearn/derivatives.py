"""Scores and Hessian of a mixture's likelihood, exact."""

from typing import NamedTuple

import torch
from torch import Tensor

from prob_moe.sklearn.problem import Problem

#: Vectors of parameters are taken in groups for which the largest tensor stays below so many numbers.
LARGEST = 2**23


class Derivatives(NamedTuple):
    """
    :param gradient: of the penalised log-likelihood, (R, D).
    :param hessian: of the same, (R, D, D).
    :param complete: the diagonal of the information that there would be if the experts were known, (R, D).
    """

    gradient: Tensor
    hessian: Tensor
    complete: Tensor


def derivatives(problem: Problem, vectors: Tensor) -> Derivatives:
    """:param vectors: (R, D)."""
    each = problem.num_experts * len(problem.columns) * problem.layout.expert_size
    groups = vectors.split(max(1, LARGEST // each))
    parts = [_derivatives(problem, group) for group in groups]
    return Derivatives(*(torch.cat(tensors) for tensors in zip(*parts)))


def unit_scores(problem: Problem, vector: Tensor) -> Tensor:
    """:returns: the derivative of every unit's log-likelihood, (units, D), for one vector (D,)."""
    vectors = vector.unsqueeze(0)
    first, _ = problem.family.derivatives(problem.target, problem.local(vectors))
    joint = problem.log_joint(vectors)
    scores = _unit_scores(problem, joint.softmax(1), problem.log_router(vectors).exp(), _expert_scores(problem, first))
    return scores[0]


def _expert_scores(problem: Problem, first: list[Tensor]) -> Tensor:
    """The derivatives of every expert's log-likelihood of every unit by its own parameters, (R, k, units, P)."""
    rows = [slope.unsqueeze(-1) * design for slope, design in zip(first, problem.designs)]
    return problem.per_unit(torch.cat(rows, -1), -2)


def _unit_scores(problem: Problem, responsibilities: Tensor, router: Tensor, scores: Tensor) -> Tensor:
    """The derivatives of every unit's log-likelihood by all parameters, (R, units, D)."""
    weighted = responsibilities.unsqueeze(-1) * scores
    excess = (responsibilities - router)[:, :-1].unsqueeze(-1) * problem.router_columns
    return torch.cat([part.transpose(1, 2).flatten(2) for part in (weighted, excess)], -1)


def _derivatives(problem: Problem, vectors: Tensor) -> Derivatives:
    layout, z, c = problem.layout, problem.router_columns, problem.unit_weights
    count, k, start = len(vectors), problem.num_experts, layout.router_start
    first, second = problem.family.derivatives(problem.target, problem.local(vectors))
    router = problem.log_router(vectors).exp()
    responsibilities = problem.log_joint(vectors).softmax(1)
    scores = _expert_scores(problem, first)
    means = _unit_scores(problem, responsibilities, router, scores)

    # The mean square of the scores under the responsibilities, less the square of their mean, plus the mean curvature.
    hessian = -(means * c.unsqueeze(-1)).mT @ means
    blocks = _curvature(problem, responsibilities, second)
    weights = (responsibilities * c).unsqueeze(-1)
    squares = (weights * scores).mT @ scores
    size = layout.expert_size
    complete = torch.zeros_like(vectors)
    for j in range(k):
        place = slice(j * size, (j + 1) * size)
        hessian[:, place, place] += blocks[:, j] + squares[:, j]
        complete[:, place] = torch.diagonal(squares[:, j], dim1=-2, dim2=-1)
    if k > 1:
        _add_router(problem, hessian, responsibilities, router, scores)
        spread = (router * (1 - router) * c)[:, :-1]
        complete[:, start:] = (spread @ z.square()).flatten(1)

    penalty = problem.ridge * problem.ridge_matrix
    gradient = c @ means - vectors @ penalty
    return Derivatives(gradient, hessian - penalty, complete + torch.diagonal(penalty).expand(count, -1))


def _curvature(problem: Problem, responsibilities: Tensor, second: list[list[Tensor]]) -> Tensor:
    """The mean of the experts' second derivatives, a block (P, P) for each: (R, k, P, P)."""
    units = problem.units
    weights = responsibilities * problem.unit_weights
    rows = weights if units is None else weights[..., units] * problem.row_weights
    blocks = [
        torch.cat([problem.gram(rows, each, a, b) for b, each in enumerate(row)], -1) for a, row in enumerate(second)
    ]
    return torch.cat(blocks, -2)


def _add_router(problem: Problem, hessian: Tensor, responsibilities: Tensor, router: Tensor, scores: Tensor) -> None:
    layout, z, c = problem.layout, problem.router_columns, problem.unit_weights
    k, start, size, q = problem.num_experts, layout.router_start, layout.expert_size, layout.num_router_columns
    for m in range(k - 1):
        columns = slice(start + m * q, start + (m + 1) * q)
        for j in range(k):
            rows = slice(j * size, (j + 1) * size)
            excess = responsibilities[:, j] * (float(j == m) - router[:, m]) * c
            block = torch.einsum("run,uq->rnq", excess.unsqueeze(-1) * scores[:, j], z)
            hessian[:, rows, columns] += block
            hessian[:, columns, rows] += block.mT
        for other in range(k - 1):
            rows = slice(start + other * q, start + (other + 1) * q)
            p, s, r, t = router[:, other], router[:, m], responsibilities[:, other], responsibilities[:, m]
            # E[(e_l - π_l)(e_m - π_m)] under the responsibilities, and the second derivative of log π.
            product = float(other == m) * (r - p) - r * s - p * t + 2 * p * s
            hessian[:, rows, columns] += torch.einsum("ru,ua,ub->rab", product * c, z, z)
