"""The law of y given an expert: densities, their derivatives, and the experts' half of an EM step."""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prob_moe.sklearn.linear import weighted_least_squares
from prob_moe.sklearn.parameters import Parts

if TYPE_CHECKING:
    from prob_moe.sklearn.problem import Problem

#: The least scale, relative to the residual standard deviation of one expert for the whole table.
FLOOR = 1e-3


class Family(ABC):
    """
    :attr num_predictors: linear predictors of an expert, m.
    :attr num_dispersions: positive numbers that an expert learns beside its coefficients, d.
    :attr discrete: whether y is a count.
    :attr in_units_of_y: whether y may be standardised: the predictors follow it, and the dispersion scales with it.
    """

    name: str
    num_predictors: int
    num_dispersions: int = 0
    in_units_of_y: bool = False
    discrete: bool = False

    def __init__(self, num_predictors: int = 1) -> None:
        self.num_predictors = num_predictors

    @abstractmethod
    def log_prob(self, target: Tensor, local: tuple[Tensor, ...]) -> Tensor:
        """
        :param target: y, and what else there is to know of a row, (t, n).
        :param local: m linear predictors and d logarithms of dispersions, each (R, k, n).
        :returns: nats, (R, k, n).
        """

    @abstractmethod
    def maximise(self, problem: "Problem", weights: Tensor, parts: Parts) -> Parts:
        r"""
        Experts for which :math:`\sum_i w_{ij} f_{ij}` minus the ridge is not less than for the given ones.

        :param weights: responsibilities times frequencies, (R, k, n).
        :returns: parts with other locations and dispersions.
        """

    @abstractmethod
    def mean(self, predictors: Tensor, dispersions: Tensor) -> Tensor:
        """
        :param predictors: of every expert for every row, (m, k, n).
        :param dispersions: logarithms, (d, k, 1).
        :returns: the mean of y, (k, n).
        """

    @abstractmethod
    def sample(self, predictors: Tensor, dispersions: Tensor, generator: np.random.RandomState) -> np.ndarray:
        """
        :param predictors: of one expert for every row, (m, n).
        :param dispersions: logarithms, (d, n).
        :returns: y, (n,).
        """

    @abstractmethod
    def cdf(self, y: Tensor, predictors: Tensor, dispersions: Tensor) -> Tensor:
        """:returns: the probability of at most y, (k, n), for y (n,)."""

    @abstractmethod
    def quantile(self, probability: float, predictors: Tensor, dispersions: Tensor) -> Tensor:
        """:returns: the least y whose :meth:`cdf` is at least the probability, (k, n)."""

    @abstractmethod
    def flat(self, problem: "Problem") -> Parts:
        """:returns: an expert from which :meth:`maximise` can begin, as parts of one vector and one expert."""

    @abstractmethod
    def floors(self, columns: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        """:returns: the least logarithms of dispersions, (d,), from one expert for the whole table."""

    @abstractmethod
    def distance_to_fit(self, problem: "Problem", rows: Tensor) -> Tensor:
        """
        :param rows: 1 for the rows through which a linear predictor is laid, otherwise 0, (n,).
        :returns: how far every row is from it, (n,).
        """

    def derivatives(self, target: Tensor, local: tuple[Tensor, ...]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """:returns: the first and second derivatives of :meth:`log_prob` by every local quantity, each (R, k, n)."""
        with torch.enable_grad():
            leaves = [each.detach().clone().requires_grad_() for each in local]
            # A value depends on the local quantities of its own row alone, so that the sum's gradient is all of them.
            first = torch.autograd.grad(self.log_prob(target, tuple(leaves)).sum(), leaves, create_graph=True)
            second = []
            for slope in first:
                rows = torch.autograd.grad(slope.sum(), leaves, retain_graph=True, materialize_grads=True)
                second.append([row.detach() for row in rows])
        return [slope.detach() for slope in first], second


class Gaussian(Family):
    """Normal with mean η and a standard deviation of the expert's own, whose logarithm is the dispersion."""

    name = "gaussian"
    num_dispersions = 1
    in_units_of_y = True

    def log_prob(self, target: Tensor, local: tuple[Tensor, ...]) -> Tensor:
        mean, log_scale = local
        return -((target[0] - mean) / log_scale.exp()).square() / 2 - log_scale - math.log(2 * math.pi) / 2

    def maximise(self, problem: "Problem", weights: Tensor, parts: Parts) -> Parts:
        y = problem.target[0] - problem.offset
        ridge = problem.ridge * (2 * parts.dispersion[..., 0]).exp()
        location = weighted_least_squares(problem.columns, y, weights, ridge)
        squares = (y - location @ problem.columns.mT).square()
        share = weights.sum(-1).clamp(min=1e-300)
        log_scale = ((weights * squares).sum(-1) / share).clamp(min=1e-300).log() / 2
        return parts._replace(
            location=location.unsqueeze(2), dispersion=log_scale.clamp(min=float(problem.floors[0])).unsqueeze(-1)
        )

    def mean(self, predictors: Tensor, dispersions: Tensor) -> Tensor:
        return predictors[0]

    def sample(self, predictors: Tensor, dispersions: Tensor, generator: np.random.RandomState) -> np.ndarray:
        return generator.normal(predictors[0].numpy(), dispersions[0].exp().numpy())

    def cdf(self, y: Tensor, predictors: Tensor, dispersions: Tensor) -> Tensor:
        return torch.special.ndtr((y - predictors[0]) / dispersions[0].exp())

    def quantile(self, probability: float, predictors: Tensor, dispersions: Tensor) -> Tensor:
        standard = torch.special.ndtri(torch.tensor(probability, dtype=torch.float64))
        return predictors[0] + standard * dispersions[0].exp()

    def flat(self, problem: "Problem") -> Parts:
        y, weights = problem.target[0] - problem.offset, row_frequencies(problem)
        mean = (weights @ y) / weights.sum()
        log_scale = ((weights @ (y - mean).square()) / weights.sum()).clamp(min=1e-300).log() / 2
        location = torch.zeros(1, 1, 1, problem.columns.shape[1], dtype=torch.float64)
        location[..., 0] = mean
        return Parts(location, log_scale.clamp(min=float(problem.floors[0])).view(1, 1, 1), location.new_zeros(1, 1, 1))

    def floors(self, columns: Tensor, y: Tensor, weights: Tensor) -> Tensor:
        # The table's own spread stands in where one regression describes it exactly.
        residuals = y - columns @ weighted_least_squares(columns, y, weights, torch.tensor(1e-8))
        least = (weights @ residuals.square() / weights.sum()).sqrt().clamp(min=1e-6)
        return (FLOOR * least).log().view(1)

    def distance_to_fit(self, problem: "Problem", rows: Tensor) -> Tensor:
        y = problem.target[0] - problem.offset
        location = weighted_least_squares(problem.columns, y, rows, torch.tensor(problem.ridge))
        return (y - problem.columns @ location).abs()


def row_frequencies(problem: "Problem") -> Tensor:
    """:returns: how often every row counts, (n,)."""
    return problem.unit_weights if problem.units is None else problem.row_weights


FAMILIES: dict[str, type[Family]] = {family.name: family for family in (Gaussian,)}
