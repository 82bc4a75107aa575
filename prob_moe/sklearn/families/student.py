"""Student's t laws, for tables with rows far off."""

import math
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from prob_moe.sklearn.families.base import Family
from prob_moe.sklearn.table import Floats


class Student(Family):
    """
    η plus the scale times a t with degrees of freedom of the expert's own, from 1 to 100: single rows far off cost it
    little. Where there are at most 1, η is the median and there is no mean.
    """

    name = "student"
    num_dispersions = 2
    bounds = ((-math.inf, math.inf), (0.0, math.log(100.0)))
    in_units_of_y = True

    def log_prob(self, target: Tensor, local: tuple[Tensor, ...]) -> Tensor:
        location, log_scale, log_freedom = local
        freedom = log_freedom.exp()
        square = ((target[0] - location) / log_scale.exp()).square()
        constant = torch.lgamma((freedom + 1) / 2) - torch.lgamma(freedom / 2) - (log_freedom + math.log(math.pi)) / 2
        return constant - log_scale - (freedom + 1) / 2 * torch.log1p(square / freedom)

    def law(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Any:
        return stats.t(np.exp(dispersions[1]), predictors[0], np.exp(dispersions[0]))

    def mean(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Floats:
        return predictors[0]

    def flat_dispersions(self, target: Tensor, weights: Tensor) -> list[float]:
        variance = float(weights @ (target[0] - weights @ target[0]).square())
        return [math.log(max(variance, 1e-300)) / 2, math.log(8.0)]

    def on_predictor_scale(self, target: Tensor) -> Tensor:
        return target[0]

    def information(self, local: tuple[Tensor, ...], second: list[list[Tensor]]) -> list[list[Tensor | None]]:
        _, log_scale, log_freedom = local
        freedom = log_freedom.exp()
        location = (freedom + 1) / (freedom + 3) * (-2 * log_scale).exp()
        # Lange, Little & Taylor (1989); of the degrees of freedom an upper bound by its order of magnitude.
        return [
            [location, None, None],
            [None, 2 * freedom / (freedom + 3), None],
            [None, None, 2 / (freedom + 1)],
        ]
