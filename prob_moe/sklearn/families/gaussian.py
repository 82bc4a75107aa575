"""Normal laws."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from torch import Tensor

from prob_moe.sklearn.families.base import Family
from prob_moe.sklearn.linear import weighted_least_squares
from prob_moe.sklearn.table import Floats

if TYPE_CHECKING:
    from prob_moe.sklearn.problem import Problem


class Gaussian(Family):
    """Normal with mean η and a standard deviation of the expert's own, the scale."""

    name = "gaussian"
    num_dispersions = 1
    bounds = ((-math.inf, math.inf),)
    in_units_of_y = True
    has_closed_form = True

    def log_prob(self, target: Tensor, local: tuple[Tensor, ...]) -> Tensor:
        mean, log_scale = local
        return -((target[0] - mean) / log_scale.exp()).square() / 2 - log_scale - math.log(2 * math.pi) / 2

    def law(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Any:
        return stats.norm(predictors[0], np.exp(dispersions[0]))

    def on_predictor_scale(self, target: Tensor) -> Tensor:
        return target[0]

    def flat_dispersions(self, target: Tensor, weights: Tensor) -> list[float]:
        variance = float(weights @ (target[0] - weights @ target[0]).square())
        return [math.log(max(variance, 1e-300)) / 2]

    def maximise(self, problem: "Problem", weights: Tensor, vectors: Tensor) -> Tensor:
        """The closed form: weighted least squares, then the mean square of the residuals."""
        parts = problem.layout.split(vectors)
        y = problem.target[0] - problem.offset
        ridge = problem.ridge * (2 * parts.dispersion[..., 0]).exp()
        location = weighted_least_squares(problem.columns, y, weights, ridge)
        squares = (y - location @ problem.columns.mT).square()
        share = weights.sum(-1).clamp(min=1e-300)
        log_scale = ((weights * squares).sum(-1) / share).clamp(min=1e-300).log() / 2
        dispersion = log_scale.unsqueeze(-1).clamp(min=problem.floors)
        return problem.layout.join(parts._replace(location=location.unsqueeze(2), dispersion=dispersion))
