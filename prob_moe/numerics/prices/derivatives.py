"""Derivatives of the density of shadow prices: in the prices, in their coordinates, and in the logits."""

import torch
from torch import Tensor

from prob_moe.numerics.prices.problem import PriceProblem
from prob_moe.numerics.prices.truncated_gaussian import log_hazard


def price_derivatives(problem: PriceProblem, prices: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient (batch, k) and Hessian (batch, k, k) of log p(Z, v) in the prices; fixed coordinates have 0 and −1.

    With Y = L_free⁻¹ (zero outside), the log-determinant has derivative G_ab = Y_aa − Y_ba in A_ab, and second
    derivative −tr(Y dL Y dL). Cost O(nk² + k⁴) in matrix products.
    """
    assignment, free = problem.assignment, problem.free
    probs, moved, one_hot, exchange, inverse = _tree_terms(problem, prices)
    column, moved_column = probs.sum(-2), moved.sum(-2)
    gradient = column - one_hot.sum(-2) - moved_column
    cross = moved.transpose(-1, -2) @ probs
    hessian = torch.diag_embed(moved_column - column) + probs.transpose(-1, -2) @ probs
    hessian = (
        hessian - cross - cross.transpose(-1, -2) - _determinant_curvature(probs, assignment, exchange, inverse, free)
    )

    hessian = torch.where(free.unsqueeze(-1) & free.unsqueeze(-2), hessian, 0.0) - torch.diag_embed((~free).to(hessian))
    return gradient * free, hessian


def logit_score(problem: PriceProblem, prices: Tensor) -> Tensor:
    """∂ log p(Z, v) / ∂φ at prices (points, batch, k), (points, batch, n, k)."""
    probs, moved, one_hot, _, _ = _tree_terms(problem, prices)
    return one_hot - probs + moved


def density_and_gradient(problem: PriceProblem, point: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density of the coordinates (points, batch, k), and its gradient: (points, batch), (points, batch, k).

    The determinant comes from the factors that also give the inverse: quicker than :meth:`PriceProblem.log_density`,
    and as accurate unless two groups of experts are linked very weakly. Cost O(nk + k³) per point.
    """
    free, expert = problem.free, problem.assignment.clamp(min=0).unsqueeze(-1)
    present = (problem.assignment >= 0).unsqueeze(-1)
    prices = problem.prices(point)
    log_probs = torch.log_softmax(problem.logits - prices.unsqueeze(-2), -1)
    owner = expert.expand(*log_probs.shape[:-1], 1)
    fit = torch.where(present, log_probs.gather(-1, owner), 0.0).sum((-2, -1))
    probs = log_probs.exp_()
    if bool((problem.assignment < 0).any()):
        probs.mul_(present)
    exchange = _exchange(probs, owner)
    factors, pivots, _ = torch.linalg.lu_factor_ex(_laplacian(exchange, free))
    log_det = factors.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    unit = torch.eye(free.shape[-1], dtype=probs.dtype, device=probs.device).expand_as(factors)
    link = _link(torch.linalg.lu_solve(factors, pivots, unit), free)
    # Sums over the rows of what `_tree_terms` has for each.
    worth = link.gather(-2, owner.expand_as(probs))
    worth = (worth * probs).sum(-1, keepdim=True)
    moved = (link * exchange).sum(-2) - (worth.mT @ probs).squeeze(-2)
    load = torch.zeros_like(problem.scale).scatter_add_(-1, expert.squeeze(-1), present.squeeze(-1).to(probs))
    gradient = (probs.sum(-2) - load - moved) * free
    return fit + log_det + problem.log_slope(point), _in_coordinates(problem, point, gradient)[0]


def _tree_terms(problem: PriceProblem, prices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the derivatives share: p, ∂ log det L_free / ∂φ, one-hot Z, A and L_free⁻¹."""
    present = (problem.assignment >= 0).unsqueeze(-1)
    expert = problem.assignment.clamp(min=0).unsqueeze(-1)
    probs = torch.softmax(problem.logits - prices.unsqueeze(-2), -1) * present
    one_hot = torch.zeros_like(problem.logits).scatter_(-1, expert, 1.0) * present
    owner = expert.expand(*probs.shape[:-1], 1)
    exchange = _exchange(probs, owner)
    inverse = _laplacian_inverse(exchange, problem.free)
    worth = _link(inverse, problem.free).gather(-2, owner.expand_as(probs))
    moved = probs * (worth - (worth * probs).sum(-1, keepdim=True))
    return probs, moved, one_hot, exchange, inverse


def _exchange(probs: Tensor, owner: Tensor) -> Tensor:
    """A_ab = Σ_{i: z_i = a} p_ib, (\\*, k, k); ``owner`` is z, (\\*, n, 1), and p is 0 where a datapoint is absent."""
    k = probs.shape[-1]
    return probs.new_zeros(*probs.shape[:-2], k, k).scatter_add(-2, owner.expand_as(probs), probs)


def _link(inverse: Tensor, free: Tensor) -> Tensor:
    """∂ log det L_free / ∂A_ab = Y_aa − Y_ba for free experts a, with Y = L_free⁻¹ where both are free, else 0."""
    inverse = inverse.masked_fill(~(free.unsqueeze(-1) & free.unsqueeze(-2)), 0.0)
    return inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) - inverse.mT


def coordinate_derivatives(problem: PriceProblem, point: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the log-density of the coordinates, with the conventions of
    :func:`price_derivatives`."""
    bounded, scale = problem.bounded, problem.scale
    gradient, hessian = price_derivatives(problem, problem.prices(point))
    in_coordinates, hazard, slope = _in_coordinates(problem, point, gradient)
    # v'' = σ h (h − u), and log |v'| has the second derivative h (h − u) − 1.
    bend = torch.where(bounded, hazard * (hazard - point), 0.0)
    hessian = hessian * slope.unsqueeze(-1) * slope.unsqueeze(-2)
    hessian = hessian + torch.diag_embed(torch.where(bounded, gradient * scale * bend + bend - 1, 0.0))
    return in_coordinates, hessian


def _in_coordinates(problem: PriceProblem, point: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient in the prices as that of the log-density of the coordinates u, the hazard h of u, and v'."""
    # v = −σ log Φ(−u): v' = σ h, and log |v'| has the derivative h − u.
    hazard = log_hazard(point).exp()
    slope = torch.where(problem.bounded, problem.scale * hazard, 1.0)
    return gradient * slope + torch.where(problem.bounded, hazard - point, 0.0), hazard, slope


def _laplacian(exchange: Tensor, free: Tensor) -> Tensor:
    """L_free, with the rows and columns of the identity for fixed experts."""
    rates = exchange.masked_fill(torch.eye(free.shape[-1], dtype=torch.bool, device=free.device), 0.0)
    outer = ~(free.unsqueeze(-1) & free.unsqueeze(-2))
    return torch.diag_embed(torch.where(free, rates.sum(-1), 1.0)) - rates.masked_fill(outer, 0.0)


def _laplacian_inverse(exchange: Tensor, free: Tensor) -> Tensor:
    """L_free⁻¹ with zero rows and columns for fixed experts; 0 where L is numerically singular."""
    inner = free.unsqueeze(-1) & free.unsqueeze(-2)
    inverse, info = torch.linalg.inv_ex(_laplacian(exchange, free))
    usable = (info == 0) & inverse.isfinite().all(-1).all(-1)
    return torch.where(inner & usable[..., None, None], inverse, 0.0)


def _determinant_curvature(probs: Tensor, expert: Tensor, exchange: Tensor, inverse: Tensor, free: Tensor) -> Tensor:
    """tr(Y ∂_m L Y ∂_l L) for all pairs of prices, (batch, k, k)."""
    # ∂_m A_ab = Σ_{i at a} p_ib p_im − A_ab δ_bm, indexed (batch, m, a, b).
    change = _pair_sums(probs, expert, free).movedim(-1, -3) - torch.diag_embed(exchange).movedim(-1, -3)
    change = change - torch.diag_embed(change.diagonal(dim1=-2, dim2=-1))
    change = torch.diag_embed(change.sum(-1)) - change
    inner = (free.unsqueeze(-1) & free.unsqueeze(-2)).unsqueeze(-3)
    solved = inverse.unsqueeze(-3) @ torch.where(inner, change, 0.0)
    return solved.flatten(-2) @ solved.transpose(-1, -2).flatten(-2).transpose(-1, -2)


def _pair_sums(probs: Tensor, expert: Tensor, free: Tensor) -> Tensor:
    """Σ_{i: z_i = a} p_ib p_im for free experts a, 0 for others, (batch, a, b, m); ``expert`` is −1 where absent.

    Free experts are full, so their datapoints fill equal groups: one batched matrix product without padding.
    """
    batch, _, k = probs.shape
    groups = int(free.sum(-1).max())
    owned = (expert >= 0) & free.gather(-1, expert.clamp(min=0))
    size = int(owned.sum(-1).max()) // max(groups, 1)
    order = torch.where(owned, expert, k).argsort(dim=-1, stable=True)[:, : groups * size]
    rows = probs.gather(-2, order.unsqueeze(-1).expand(-1, -1, k)).view(batch, groups, size, k)
    sums = rows.transpose(-1, -2) @ rows
    label = (~free).int().argsort(dim=-1, stable=True)[:, :groups]
    sums = sums * free.gather(-1, label)[..., None, None]
    return probs.new_zeros(batch, k, k, k).scatter(1, label[..., None, None].expand_as(sums), sums)
