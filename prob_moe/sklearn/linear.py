"""Weighted linear equations, many at once, where some of them may be singular."""

import torch
from torch import Tensor


def weighted_least_squares(columns: Tensor, y: Tensor, weights: Tensor, ridge: Tensor) -> Tensor:
    r"""
    The coefficients β that minimise :math:`\sum_i w_i (y_i - x_i^\top \beta)^2 + \lambda |\beta|^2`.

    :param columns: (n, p).
    :param y: (n,), or one for each problem, (*problems, n).
    :param weights: (*problems, n).
    :param ridge: λ, (*problems).
    :returns: (*problems, p).
    """
    p = columns.shape[1]
    products = weights.reshape(-1, len(columns)) @ (columns.unsqueeze(-1) * columns.unsqueeze(-2)).flatten(1)
    gram = products.reshape(*weights.shape[:-1], p, p)
    gram = gram + ridge[..., None, None] * torch.eye(p, dtype=columns.dtype)
    return solve_positive(gram, (weights * y) @ columns)


def solve_positive(matrix: Tensor, right: Tensor) -> Tensor:
    """
    The solutions of positive semidefinite systems; of a singular one, the shortest.

    :param matrix: (*, p, p).
    :param right: (*, p).
    """
    size = torch.diagonal(matrix, dim1=-2, dim2=-1).sum(-1)[..., None, None]
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal = torch.diagonal(factor, dim1=-2, dim2=-1)
    singular = (failed > 0) | (diagonal.amin(-1) ** 2 <= 1e-14 * size[..., 0, 0])
    if not bool(singular.any()):
        return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
    safe = torch.where(singular[..., None, None], torch.eye(matrix.shape[-1], dtype=matrix.dtype), factor)
    solution = torch.cholesky_solve(right.unsqueeze(-1), safe).squeeze(-1)
    values, vectors = torch.linalg.eigh(matrix[singular])
    kept = values > 1e-13 * values.amax(-1, keepdim=True).clamp(min=1e-300)
    inverse = torch.where(kept, 1 / torch.where(kept, values, 1.0), 0.0)
    solution[singular] = torch.einsum("sab,sb,scb,sc->sa", vectors, inverse, vectors, right[singular])
    return solution
