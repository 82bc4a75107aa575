"""Laws of counts."""

from typing import Any

import numpy as np
import torch
from scipy import special, stats
from torch import Tensor

from prob_moe.sklearn.families.base import Family, first_row
from prob_moe.sklearn.table import Floats

#: Rates and odds are taken within e to this power, so that nothing overflows far away from the table.
LARGEST = 500.0


class Poisson(Family):
    """Counts with mean exp(η); an offset is the logarithm of an exposure."""

    name = "poisson"
    discrete = True

    def log_prob(self, target: Tensor, local: tuple[Tensor, ...]) -> Tensor:
        y, log_rate = target[0], local[0]
        return y * log_rate - log_rate.clamp(max=LARGEST).exp() - torch.lgamma(y + 1)

    def law(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Any:
        # Counts beyond 2^53 are no whole numbers any more; scipy's quantiles end there too.
        return stats.poisson(np.exp(np.clip(predictors[0], -LARGEST, 36.0)))

    def mean(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Floats:
        means: Floats = np.exp(np.clip(predictors[0], -LARGEST, LARGEST))
        return means

    def on_predictor_scale(self, target: Tensor) -> Tensor:
        return (target[0] + 0.5).log()

    def flat_predictors(self, target: Tensor, weights: Tensor) -> list[float]:
        return [float((weights @ target[0] + 1e-3).log())]

    def check(self, y: Floats, trials: Floats | None) -> None:
        wrong = (y < 0) | (y != np.floor(y))
        if wrong.any():
            row = first_row(wrong)
            raise ValueError(f"y must hold counts for family='poisson', but is {y[row]} in row {row}")


class Binomial(Family):
    """Successes among a number of trials, each with probability 1 / (1 + exp(-η))."""

    name = "binomial"
    discrete = True

    def log_prob(self, target: Tensor, local: tuple[Tensor, ...]) -> Tensor:
        (y, trials), log_odds = target, local[0]
        ways = torch.lgamma(trials + 1) - torch.lgamma(y + 1) - torch.lgamma(trials - y + 1)
        log_success, log_failure = (torch.nn.functional.logsigmoid(each) for each in (log_odds, -log_odds))
        return ways + y * log_success + (trials - y) * log_failure

    def law(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Any:
        return stats.binom(trials.astype(np.int64), special.expit(predictors[0]))

    def on_predictor_scale(self, target: Tensor) -> Tensor:
        y, trials = target
        return ((y + 0.5) / (trials - y + 0.5)).log()

    def flat_predictors(self, target: Tensor, weights: Tensor) -> list[float]:
        success, failure = weights @ target[0] + 1e-3, weights @ (target[1] - target[0]) + 1e-3
        return [float((success / failure).log())]

    def check(self, y: Floats, trials: Floats | None) -> None:
        trials = np.ones_like(y) if trials is None else trials
        wrong = (trials < 0) | (trials != np.floor(trials))
        if wrong.any():
            row = first_row(wrong)
            raise ValueError(f"trials must be counts, but is {trials[row]} in row {row}")
        wrong = (y < 0) | (y > trials) | (y != np.floor(y))
        if wrong.any():
            row = first_row(wrong)
            raise ValueError(
                "y must hold successes for family='binomial', from 0 to trials, but is "
                f"{y[row]} of {trials[row]} in row {row}"
            )
