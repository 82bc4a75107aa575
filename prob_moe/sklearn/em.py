"""Expectation maximisation from many starts at once."""

import torch
from torch import Tensor

from prob_moe.sklearn.linear import solve_positive
from prob_moe.sklearn.problem import Problem


def expectation_maximisation(
    problem: Problem, vectors: Tensor, *, max_iterations: int = 50, tolerance: float = 1e-5
) -> Tensor:
    """
    Steps of generalised expectation maximisation, none of which lowers the penalised log-likelihood.

    :param vectors: starts, (R, D).
    :param tolerance: a start is at rest after a step that gains fewer nats; it takes part no longer.
    :returns: where they got to, (R, D).
    """
    result = vectors.clone()
    moving = torch.arange(len(vectors))
    joint = problem.log_joint(vectors)
    value = joint.logsumexp(1) @ problem.unit_weights - problem.penalty(vectors)
    for _ in range(max_iterations):
        vectors = maximisation_step(problem, vectors, joint.softmax(1))
        joint = problem.log_joint(vectors)
        last, value = value, joint.logsumexp(1) @ problem.unit_weights - problem.penalty(vectors)
        result[moving] = vectors
        still = value - last > tolerance
        if not bool(still.any()):
            break
        if not bool(still.all()):
            moving, vectors, joint, value = moving[still], vectors[still], joint[still], value[still]
    return result


def maximisation_step(problem: Problem, vectors: Tensor, responsibilities: Tensor) -> Tensor:
    """:param responsibilities: of the experts for the units, (R, k, units)."""
    weights = responsibilities * problem.unit_weights
    rows = weights if problem.units is None else weights[..., problem.units] * problem.row_weights
    moved = problem.family.maximise(problem, rows, vectors)
    return moved if problem.num_experts == 1 else router_step(problem, moved, weights)


def router_step(problem: Problem, vectors: Tensor, weights: Tensor) -> Tensor:
    """One Newton step of the router towards the responsibilities, shortened until it gains."""
    layout, z = problem.layout, problem.router_columns
    start, k, q = layout.router_start, problem.num_experts, layout.num_router_columns
    log_p = problem.log_router(vectors)
    p, c = log_p.exp(), problem.unit_weights
    ridge = problem.ridge * problem.ridge_matrix[start:, start:]
    gradient = ((weights - p * c)[:, :-1] @ z).flatten(1) - vectors[:, start:] @ ridge
    others = p[:, :-1]
    spread = torch.diag_embed(others.transpose(1, 2)) - torch.einsum("rju,rlu->rujl", others, others)
    # A little of the bound of Böhning (1992) keeps steps finite where the router is saturated.
    bound = (torch.eye(k - 1, dtype=z.dtype) - 1 / k) / 2
    spread = (spread + 1e-4 * bound) * c[:, None, None]
    information = torch.einsum("rujl,ua,ub->rjalb", spread, z, z).reshape(len(vectors), (k - 1) * q, -1)
    step = solve_positive(information + ridge, gradient)

    def gain(vectors: Tensor) -> Tensor:
        return (weights * problem.log_router(vectors)).sum((1, 2)) - problem.penalty(vectors)

    before, length = gain(vectors), torch.ones(len(vectors), 1, dtype=z.dtype)
    for _ in range(8):
        moved = torch.cat([vectors[:, :start], vectors[:, start:] + length * step], -1)
        worse = gain(moved) < before - 1e-12
        if not bool(worse.any()):
            return moved
        length = torch.where(worse.unsqueeze(-1), length / 4, length)
    return torch.where(worse.unsqueeze(-1), vectors, moved)
