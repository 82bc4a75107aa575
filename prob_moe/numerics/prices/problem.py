"""The density of shadow prices of a fixed assignment as a density on R^d.

Prices without a bound are their own coordinates. A price v ≥ 0 is written v = −σ log Φ(−u), which makes an exponential
variable of mean σ, and nearly a half-normal one, a Gaussian coordinate u: prices pile up at the boundary in just these
two ways. So the density lives on R^d and has a mode inside, also where the mode of v sits on the boundary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from prob_moe.numerics.prices.density import PriceStructure, reachable_logits, tree_log_density
from prob_moe.numerics.prices.truncated_gaussian import log_hazard

CHUNK_ELEMENTS = 2**21  # of a tensor (points, batch, n, k)


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
