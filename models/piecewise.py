"""The toy task of two lines: a mixture has to find out which datapoints belong to which line."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts

NOISE = 0.1
LINES = ((0.8, -0.2), (-2.0, 2.0))  # slope and intercept, left and right of the break


class PiecewiseData(NamedTuple):
    """Data sets of n points each."""

    x: Tensor  #: (*batch, n, 1)
    y: Tensor  #: (*batch, n)


def piecewise_mean(x: Tensor, break_at: float = 0.5) -> Tensor:
    """
    The noiseless task: 0.8 x - 0.2 left of the break, -2 x + 2 right of it.

    >>> piecewise_mean(torch.tensor([0.25, 0.75]))
    tensor([0.0000, 0.5000])
    """
    (left_slope, left_shift), (right_slope, right_shift) = LINES
    return torch.where(x < break_at, left_slope * x + left_shift, right_slope * x + right_shift)


def piecewise_data(
    batch_shape: tuple[int, ...] = (), num_datapoints: int = 100, break_at: float = 0.5, noise: float = NOISE
) -> PiecewiseData:
    """
    x ~ U(0, 1), y ~ Normal(mean(x), noise).

    :param batch_shape: independent data sets.
    :param break_at: where the lines change; away from 1/2 the experts' shares are unbalanced.
    """
    if not 0 < break_at < 1:
        raise ValueError(f"break_at must lie inside (0, 1), got {break_at!r}")
    x = torch.rand(*batch_shape, num_datapoints)
    return PiecewiseData(x.unsqueeze(-1), piecewise_mean(x, break_at) + noise * torch.randn(x.shape))


def piecewise_nll(data: PiecewiseData, break_at: float = 0.5, noise: float = NOISE) -> Tensor:
    """:returns: negative log-likelihood of the true process, nats per datapoint, (*batch)."""
    truth = dist.Normal(piecewise_mean(data.x.squeeze(-1), break_at), noise)
    return -truth.log_prob(data.y).mean(-1)


class StackedLinear(nn.Module):
    """One linear map for each model of a stack: (*batch, n, d) -> (*batch, n, h), each drawn as ``nn.Linear`` is."""

    def __init__(self, batch_shape: tuple[int, ...], in_features: int, out_features: int) -> None:
        super().__init__()
        bound = in_features**-0.5
        self.weight = nn.Parameter(torch.empty(*batch_shape, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(*batch_shape, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class StackedCostBaseline(nn.Module):
    """A network for each model of a stack that predicts the cost of every datapoint: (*batch, n, d) -> (*batch, n)."""

    def __init__(self, batch_shape: tuple[int, ...], hidden_features: int = 16, in_features: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            StackedLinear(batch_shape, in_features, hidden_features),
            nn.ReLU(),
            StackedLinear(batch_shape, hidden_features, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(-1)


def gaussian(out: Tensor, noise: float = NOISE) -> dist.Normal:
    """The likelihood: a Gaussian around the single output of an expert."""
    return dist.Normal(out.squeeze(-1), noise)


def piecewise_mixture(
    assignment: Callable[..., AssignmentDistribution],
    batch_shape: tuple[int, ...] = (),
    capacity_factor: float = 1.0,
    noise: float = NOISE,
    load_balancing: float = 0.0,
) -> MixtureOfExperts:
    """
    Two linear experts and a logistic router.

    :param assignment: the assignment distribution.
    :param batch_shape: independent models, trained side by side in plates of these sizes.
    """
    return MixtureOfExperts(
        router=StackedLinear(batch_shape, 1, 2),
        experts=BatchedExperts(2, 1, None, 1, batch_shape=batch_shape),
        likelihood=partial(gaussian, noise=noise),
        assignment=assignment,
        capacity_factor=capacity_factor,
        baseline={"use_decaying_avg_baseline": True},
        load_balancing=load_balancing,
    )
