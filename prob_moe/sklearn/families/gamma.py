"""Gamma laws."""

import math
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from prob_moe.sklearn.families.base import Family, first_row
from prob_moe.sklearn.families.counts import LARGEST
from prob_moe.sklearn.table import Floats


class Gamma(Family):
    """
    Positive numbers with mean exp(η) and a coefficient of variation of the expert's own, the scale: the shape is 1 over
    its square, which is what the theory of generalised linear models calls dispersion.
    """

    name = "gamma"
    num_dispersions = 1
    bounds = ((-math.inf, math.log(1e3)),)

    def log_prob(self, target: Tensor, local: tuple[Tensor, ...]) -> Tensor:
        y, (log_mean, log_scale) = target[0], local
        shape = (-2 * log_scale).exp()
        # y over its mean, in logs, so that nothing overflows.
        log_ratio = y.log() - log_mean
        unit = shape * log_ratio - shape * log_ratio.clamp(max=LARGEST).exp()
        return unit + shape * shape.log() - torch.lgamma(shape) - y.log()

    def law(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Any:
        shape = np.exp(-2 * dispersions[0])
        return stats.gamma(shape, scale=np.exp(np.clip(predictors[0], -LARGEST, LARGEST)) / shape)

    def on_predictor_scale(self, target: Tensor) -> Tensor:
        return target[0].log()

    def log_slope(self, target: Tensor) -> Tensor:
        return target[0].log()

    def flat_predictors(self, target: Tensor, weights: Tensor) -> list[float]:
        return [float((weights @ target[0]).log())]

    def flat_dispersions(self, target: Tensor, weights: Tensor) -> list[float]:
        mean = weights @ target[0]
        variance = float(weights @ (target[0] / mean - 1).square())
        return [math.log(max(variance, 1e-12)) / 2]

    def information(self, local: tuple[Tensor, ...], second: list[list[Tensor]]) -> list[list[Tensor | None]]:
        shape = (-2 * local[1]).exp()
        # The expected one; trigamma(a) - 1/a loses its digits for large a, where it is 1/(2 a²).
        spread = torch.where(shape > 1e4, 0.5, shape * (shape * torch.polygamma(1, shape) - 1)).clamp(min=1e-3)
        return [[shape, None], [None, 4 * spread]]

    def check(self, y: Floats, trials: Floats | None) -> None:
        if (y <= 0).any():
            row = first_row(y <= 0)
            raise ValueError(f"y must be positive for family='gamma', but is {y[row]} in row {row}")
