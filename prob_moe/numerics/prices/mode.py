"""Mode and curvature of the density of shadow prices, for a fixed assignment.

Prices without a bound are their own coordinates. A price v ≥ 0 is written v = −σ log Φ(−u), which makes an exponential
variable of mean σ, and nearly a half-normal one, a Gaussian coordinate u: prices pile up at the boundary in just these
two ways. So the density lives on R^d and has a mode inside, also where the mode of v sits on the boundary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from prob_moe.numerics.prices.density import PriceStructure, reachable_logits, tree_log_density
from prob_moe.numerics.prices.truncated_gaussian import log_hazard

STEP_SIZES = (1.0, 0.5, 0.2, 0.05, 0.01)
LONGEST_STEP = 8.0  # in any coordinate: far from the mode the quadratic model is worth little
CHUNK_ELEMENTS = 2**21  # of a tensor (points, batch, n, k)
LEAST_CURVATURE = 0.02  # no coordinate is spread wider than about 7


class PriceProblem(NamedTuple):
    """A flat batch of assignments whose density of prices is to be integrated, in float64.

    :param logits: with −inf outside the component of the datapoint's own expert, (batch, n, k).
    :param assignment: (batch, n), −1 where absent.
    :param free: prices to integrate over, (batch, k).
    :param bounded: prices restricted to v ≥ 0, (batch, k).
    :param scale: σ, the scale of the bounded prices, (batch, k).
    """

    logits: Tensor
    assignment: Tensor
    free: Tensor
    bounded: Tensor
    scale: Tensor

    @classmethod
    def build(cls, logits: Tensor, assignment: Tensor, structure: PriceStructure) -> "PriceProblem":
        logits = reachable_logits(logits, assignment, structure)
        probs = torch.softmax(logits, -1) * (assignment >= 0).unsqueeze(-1)
        # One datapoint more than there are: no scale above 1, which is the scale of Gumbel noise.
        scale = (1 + (probs * (1 - probs)).sum(-2)).rsqrt()
        return cls(logits, assignment, structure.free, structure.bounded, scale)

    def select(self, index: Tensor) -> "PriceProblem":
        """The problems at ``index`` of the batch."""
        return PriceProblem(*(field[index] for field in self))

    def prices(self, coordinates: Tensor) -> Tensor:
        """Prices v at coordinates u, (\\*, k)."""
        folded = -self.scale * torch.special.log_ndtr(-coordinates)
        return torch.where(self.free, torch.where(self.bounded, folded, coordinates), 0.0)

    def coordinates(self, prices: Tensor) -> Tensor:
        """Coordinates u of prices v, the inverse of :meth:`prices`, (\\*, k)."""
        ratio = torch.where(self.bounded, prices / self.scale, 1.0).clamp(min=1e-300)
        low = torch.special.ndtri(-torch.expm1(-ratio))
        high = (2 * ratio).sqrt()
        middle = -torch.special.ndtri(torch.exp(-ratio.clamp(max=100.0)))
        for _ in range(4):
            high = high + (torch.special.log_ndtr(-high) + ratio) * (-log_hazard(high)).exp()
        folded = torch.where(ratio < 0.5, low, torch.where(ratio < 50.0, middle, high))
        return torch.where(self.free, torch.where(self.bounded, folded, prices), 0.0)

    def log_slope(self, coordinates: Tensor) -> Tensor:
        """log |∂v/∂u|, (\\*, k) to (\\*,)."""
        return torch.where(self.bounded, log_hazard(coordinates) + self.scale.log(), 0.0).sum(-1)

    def log_joint(self, prices: Tensor) -> Tensor:
        """log p(Z, v), (points, batch, k) to (points, batch)."""
        return tree_log_density(self.logits, self.assignment, prices, self.free)

    def log_density(self, coordinates: Tensor) -> Tensor:
        """Log-density of the coordinates, log p(Z, v(u)) + log |∂v/∂u|: (points, batch, k) to (points, batch)."""
        return self.log_joint(self.prices(coordinates)) + self.log_slope(coordinates)


def in_chunks(points: Tensor, problem: PriceProblem) -> tuple[Tensor, ...]:
    """``points`` split along its first dimension so that one chunk of (points, batch, n, k) fits in memory and
    cache."""
    return points.split(max(1, CHUNK_ELEMENTS // max(1, problem.logits.numel())))


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
        gradient, hessian = _derivatives(problem, point)
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
    return point, inverse_curvature(_derivatives(problem, point)[1])


def inverse_curvature(hessian: Tensor) -> Tensor:
    """−H⁻¹ with eigenvalues made positive, and no variance above 1 / LEAST_CURVATURE, (batch, k, k)."""
    curvature, axes = torch.linalg.eigh(-hessian)
    variance = 1 / curvature.abs().clamp(min=LEAST_CURVATURE)
    return (axes * variance.unsqueeze(-2)) @ axes.transpose(-1, -2)


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


def _tree_terms(problem: PriceProblem, prices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What the derivatives share: p, ∂ log det L_free / ∂φ, one-hot Z, A and L_free⁻¹."""
    present = (problem.assignment >= 0).unsqueeze(-1)
    expert = problem.assignment.clamp(min=0).unsqueeze(-1)
    probs = torch.softmax(problem.logits - prices.unsqueeze(-2), -1) * present
    one_hot = torch.zeros_like(problem.logits).scatter_(-1, expert, 1.0) * present
    exchange = one_hot.transpose(-1, -2) @ probs
    inverse = _laplacian_inverse(exchange, problem.free)
    link = inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) - inverse.transpose(-1, -2)
    worth = one_hot @ (link * problem.free.unsqueeze(-1))
    moved = probs * (worth - (worth * probs).sum(-1, keepdim=True))
    return probs, moved, one_hot, exchange, inverse


def _derivatives(problem: PriceProblem, point: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the log-density of the coordinates, with the same conventions."""
    bounded, scale = problem.bounded, problem.scale
    gradient, hessian = price_derivatives(problem, problem.prices(point))
    # v = −σ log Φ(−u): v' = σ h, v'' = σ h (h − u), and log |v'| has derivatives h − u and h (h − u) − 1.
    hazard = log_hazard(point).exp()
    slope = torch.where(bounded, scale * hazard, 1.0)
    bend = torch.where(bounded, hazard * (hazard - point), 0.0)
    hessian = hessian * slope.unsqueeze(-1) * slope.unsqueeze(-2)
    hessian = hessian + torch.diag_embed(torch.where(bounded, gradient * scale * bend + bend - 1, 0.0))
    gradient = gradient * slope + torch.where(bounded, hazard - point, 0.0)
    return gradient, hessian


def _laplacian_inverse(exchange: Tensor, free: Tensor) -> Tensor:
    """L_free⁻¹ with zero rows and columns for fixed experts; 0 where L is numerically singular."""
    rates = exchange - torch.diag_embed(exchange.diagonal(dim1=-2, dim2=-1))
    inner = free.unsqueeze(-1) & free.unsqueeze(-2)
    laplacian = torch.diag_embed(torch.where(free, rates.sum(-1), 1.0)) - torch.where(inner, rates, 0.0)
    inverse, info = torch.linalg.inv_ex(laplacian)
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
