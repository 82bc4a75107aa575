"""Proposal for importance sampling of shadow prices."""

import math

import torch
from torch import Tensor

from prob_moe.numerics.prices.derivatives import price_derivatives
from prob_moe.numerics.prices.mode import find_mode, inverse_curvature
from prob_moe.numerics.prices.problem import PriceProblem
from prob_moe.numerics.prices.truncated_gaussian import TruncatedGaussian

NU = 6  # degrees of freedom of the heavy-tailed half
HEAVY_SHARE = 0.5


class PriceProposal:
    """Equal mixture of a truncated Gaussian in the prices and a multivariate Student t in the coordinates.

    The Gaussian is efficient where the density is nearly normal up to its bounds (many datapoints per expert). The t
    has heavier tails than any density of prices, so that the weights are bounded everywhere.

    :param problem: the flat batch of assignments.
    :param center: centre of the t in the coordinates u, (batch, k).
    :param factor: lower Cholesky factor of its scale matrix, (batch, k, k), the identity on fixed coordinates.
    :param gaussian: the Gaussian part.
    """

    def __init__(self, problem: PriceProblem, center: Tensor, factor: Tensor, gaussian: TruncatedGaussian):
        self.problem, self.center, self.factor, self.gaussian = problem, center, factor, gaussian

    @classmethod
    def at_mode(cls, problem: PriceProblem, start: Tensor) -> "PriceProposal":
        """Laplace's approximations: of the coordinates at their mode, and of the prices at the same place.

        :param start: prices to begin the search at, the best of them, (starts, batch, k).
        """
        center, covariance = find_mode(problem, start)
        prices = problem.prices(center)
        gradient, hessian = price_derivatives(problem, prices)
        price_covariance = inverse_curvature(hessian)
        mean = prices + (price_covariance @ gradient.unsqueeze(-1)).squeeze(-1)
        mean = torch.where(problem.bounded.any(-1, keepdim=True), mean, prices)
        gaussian = TruncatedGaussian(mean, torch.linalg.cholesky(price_covariance), problem.free, problem.bounded)
        return cls(problem, center, torch.linalg.cholesky(covariance), gaussian)

    @classmethod
    def fitted(cls, problem: PriceProblem, prices: Tensor) -> "PriceProposal":
        """Both parts with the moments of ``prices``, (points, batch, k), which are more or less draws of the
        density."""
        coordinates = problem.coordinates(prices)
        parts = [_moments(points, problem.free) for points in (coordinates, prices)]
        (center, factor), (mean, price_factor) = parts
        gaussian = TruncatedGaussian(mean, price_factor, problem.free, problem.bounded)
        return cls(problem, center, factor, gaussian)

    def select(self, chosen: Tensor) -> "PriceProposal":
        """The proposals of the ``chosen`` problems of the batch, an index or a mask."""
        return PriceProposal(
            self.problem.select(chosen), self.center[chosen], self.factor[chosen], self.gaussian.select(chosen)
        )

    @staticmethod
    def noise_dimension(num_experts: int) -> int:
        """Uniforms a point consumes."""
        return num_experts + 2

    def points(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Prices (points, batch, k) and their log-densities (points, batch) from uniforms (points, noise_dimension)."""
        # The sequence is most even in its first dimensions, which the choice of component and the radius therefore
        # take.
        heavy = uniforms[:, 0] < HEAVY_SHARE
        prices = torch.empty(len(uniforms), *self.center.shape, dtype=uniforms.dtype, device=uniforms.device)
        prices[~heavy] = self.gaussian.draw(uniforms[~heavy, 2:])
        chi_square = _chi_square_quantile(uniforms[heavy, 1])
        normal = torch.special.ndtri(uniforms[heavy, 2:]) * (NU / chi_square).sqrt().unsqueeze(-1)
        offset = normal.unsqueeze(-2) * self.problem.free
        prices[heavy] = self.problem.prices(self.center + (self.factor @ offset.unsqueeze(-1)).squeeze(-1))
        return prices, self.log_prob(prices)

    def log_prob(self, prices: Tensor) -> Tensor:
        """Log-density of the mixture with respect to the free prices, (points, batch, k) to (points, batch)."""
        free = self.problem.free
        coordinates = self.problem.coordinates(prices)
        white = torch.linalg.solve_triangular(self.factor, (coordinates - self.center).movedim(0, -1), upper=False)
        radius = (white.square() * free.unsqueeze(-1)).sum(-2).t()
        d = free.sum(-1).to(radius)
        student = torch.lgamma((NU + d) / 2) - math.lgamma(NU / 2) - 0.5 * d * math.log(NU * math.pi)
        student = student - self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        student = student - 0.5 * (NU + d) * torch.log1p(radius / NU) - self.problem.log_slope(coordinates)
        gaussian = self.gaussian.log_prob(prices)
        return torch.logaddexp(gaussian + math.log(1 - HEAVY_SHARE), student + math.log(HEAVY_SHARE))

    def refined(self, prices: Tensor, log_weights: Tensor) -> "PriceProposal":
        """The proposal with moments matched to weighted points, as far as the points' effective sample size supports
        it.

        In whitened coordinates a mean and d variances are estimated from the sample at relative error d/ESS, and d²
        covariances at d²/ESS: each is shrunk towards what it was in this proportion. The Gaussian follows the t where
        prices have no bounds, and stays elsewhere.

        :param prices: points drawn from this proposal, (points, batch, k).
        :param log_weights: their log importance weights, (points, batch).
        """
        problem, free = self.problem, self.problem.free
        weights = torch.softmax(log_weights, 0)
        ess = 1 / weights.square().sum(0)
        d = free.sum(-1).clamp(min=1).to(ess)
        offset = (problem.coordinates(prices) - self.center).movedim(0, -1)
        white = torch.linalg.solve_triangular(self.factor, offset, upper=False)
        weights = weights.t().unsqueeze(-2)
        # A point of no weight may lie at infinity: 0 · inf must be 0.
        white = torch.where(weights > 0, white, 0.0)
        mean = (white * weights).sum(-1)
        apart = white - mean.unsqueeze(-1)
        spread = (apart * weights) @ apart.transpose(-1, -2)
        diagonal = torch.diag_embed(spread.diagonal(dim1=-2, dim2=-1))
        trust, trust_pairs = (ess / (ess + 2 * d))[:, None, None], (ess / (ess + d.square()))[:, None, None]
        eye = torch.eye(self.center.shape[-1], dtype=spread.dtype, device=spread.device)
        shape = trust * (diagonal + trust_pairs * (spread - diagonal)) + (1 - trust) * eye
        shape = torch.where(free.unsqueeze(-1) & free.unsqueeze(-2), shape, eye)
        center = self.center + (self.factor @ (trust.squeeze(-1) * mean).unsqueeze(-1)).squeeze(-1)
        factor = self.factor @ torch.linalg.cholesky(shape)
        stay = problem.bounded.any(-1, keepdim=True)
        gaussian = TruncatedGaussian(
            torch.where(stay, self.gaussian.mean, center),
            torch.where(stay.unsqueeze(-1), self.gaussian.factor, factor),
            free,
            problem.bounded,
        )
        return PriceProposal(problem, center, factor, gaussian)


def _moments(points: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (batch, k) and Cholesky factor of the covariance (batch, k, k), the identity on fixed coordinates."""
    mean = points.mean(0)
    apart = (points - mean).movedim(0, -1)
    covariance = apart @ apart.mT / (len(points) - 1)
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    ridge = torch.where(free, 1e-3 * variance + 1e-6, 1.0)
    return mean, torch.linalg.cholesky(torch.where(both, covariance, 0.0) + torch.diag_embed(ridge))


def _chi_square_quantile(uniforms: Tensor) -> Tensor:
    """Quantiles of χ² with NU degrees of freedom, by bisection of its logarithm."""
    low, high = torch.full_like(uniforms, -20.0), torch.full_like(uniforms, 6.0)
    shape = torch.full_like(uniforms, NU / 2)
    for _ in range(50):
        middle = (low + high) / 2
        below = torch.special.gammainc(shape, middle.exp() / 2) < uniforms
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low.exp()
