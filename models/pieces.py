"""k straight pieces of a line: the smallest task on which the router objective is not enough."""

from collections.abc import Callable
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.piecewise import NOISE, PiecewiseData, StackedLinear, gaussian
from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts

HIDDEN = 32  #: units of the router
#: standard deviations of a piece's value at its middle, and of its rise over its own length
LEVEL, RISE = 0.5, 0.2


class Pieces(NamedTuple):
    """Lines over (0, 1), each cut into k pieces of equal length."""

    levels: Tensor  #: value of every piece at its middle, (*batch, k)
    rises: Tensor  #: from its start to its end, (*batch, k)

    def piece(self, x: Tensor) -> Tensor:
        """:returns: in which piece the datapoints (*batch, n, 1) lie, long (*batch, n)."""
        num_pieces = self.levels.shape[-1]
        return (x.squeeze(-1) * num_pieces).long().clamp(0, num_pieces - 1)

    def mean(self, x: Tensor) -> Tensor:
        """:returns: the noiseless value at x, (*batch, n) -> (*batch, n)."""
        piece = self.piece(x.unsqueeze(-1))
        place = x * self.levels.shape[-1] - piece - 0.5
        return self.levels.gather(-1, piece) + self.rises.gather(-1, piece) * place

    def data(self, num_datapoints: int, noise: float = NOISE) -> PiecewiseData:
        """x ~ U(0, 1), y ~ Normal(mean(x), noise)."""
        x = torch.rand(*self.levels.shape[:-1], num_datapoints)
        return PiecewiseData(x.unsqueeze(-1), self.mean(x) + noise * torch.randn(x.shape))

    def nll(self, data: PiecewiseData, noise: float = NOISE) -> Tensor:
        """:returns: negative log-likelihood of the true process, nats per datapoint, (*batch)."""
        return -dist.Normal(self.mean(data.x.squeeze(-1)), noise).log_prob(data.y).mean(-1)


def draw_pieces(batch_shape: tuple[int, ...], num_pieces: int) -> Pieces:
    """
    Levels ~ Normal(0, 0.5) and rises ~ Normal(0, 0.2), all independent.

    :param batch_shape: independent lines.

    >>> _ = torch.manual_seed(0)
    >>> draw_pieces((64,), 8).mean(torch.zeros(64, 100)).shape
    torch.Size([64, 100])
    """
    shape = (*batch_shape, num_pieces)
    return Pieces(LEVEL * torch.randn(shape), RISE * torch.randn(shape))


def draw_twins(batch_shape: tuple[int, ...], num_pieces: int) -> Pieces:
    """
    As :func:`draw_pieces`, but the second piece goes on where the first one ends, with the same rise: two equal experts
    are right on both, and which of them a datapoint has is arbitrary.

    :param num_pieces: k, at least 3.
    :raises ValueError: if there are fewer: one line would need no routing.
    """
    if num_pieces < 3:
        raise ValueError(f"num_pieces must be at least 3, got {num_pieces!r}")
    levels, rises = draw_pieces(batch_shape, num_pieces)
    rises[..., 1] = rises[..., 0]
    levels[..., 1] = levels[..., 0] + rises[..., 0]
    return Pieces(levels, rises)


def pieces_mixture(
    assignment: Callable[..., AssignmentDistribution],
    num_pieces: int,
    batch_shape: tuple[int, ...] = (),
    capacity_factor: float = 1.0,
) -> MixtureOfExperts:
    """
    As many linear experts as pieces, and a router with one hidden layer.

    :param batch_shape: independent models, trained side by side in plates of these sizes.
    """
    return MixtureOfExperts(
        router=stacked_network(batch_shape, 1, num_pieces),
        experts=BatchedExperts(num_pieces, 1, None, 1, batch_shape=batch_shape),
        likelihood=gaussian,
        assignment=assignment,
        capacity_factor=capacity_factor,
        baseline={"use_decaying_avg_baseline": True},
    )


def stacked_network(
    batch_shape: tuple[int, ...], in_features: int, out_features: int, hidden_features: int = HIDDEN
) -> nn.Sequential:
    """One hidden layer of hyperbolic tangents, for each model of a stack: (*batch, n, d) -> (*batch, n, out)."""
    return nn.Sequential(
        StackedLinear(batch_shape, in_features, hidden_features),
        nn.Tanh(),
        StackedLinear(batch_shape, hidden_features, out_features),
    )


class PosteriorNetwork(nn.Module):
    """
    Logits of experts for datapoints whose y is known, for a guide that selects experts.

    :param network: from x and the features of y, side by side, to logits, (*batch, n, d + f) -> (*batch, n, k).
    :param features: of y, (*batch, n) -> (*batch, n, f).
    """

    def __init__(self, network: nn.Module, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(*batch, n, d) and (*batch, n) -> (*batch, n, k)."""
        logits: Tensor = self.network(torch.cat([x, self.features(y).to(x.dtype)], -1))
        return logits
