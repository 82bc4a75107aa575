"""Tasks whose seeds learn side by side from minibatches: digits in regimes, and tables."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

import pyro
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from inference.study.problems import ROBUST, Labelled, Problem, brightness, misclassified
from inference.study.settings import RegimesRun, TableRun
from inference.training.schedule import cosine
from models.digits import NUM_CLASSES, NUM_PIXELS
from models.pieces import PosteriorNetwork, stacked_network
from models.piecewise import StackedCostBaseline, StackedLinear
from models.regimes import BRIGHTEST, regime_of, regimes_data, regimes_mixture
from models.tables import HIDDEN, ROUTER_HIDDEN, TableData, table_data, table_mixture
from prob_moe.distributions import IndependentRouting
from prob_moe.mixture import MixtureOfExperts


class Parts(Protocol):
    """The data of a seed."""

    @property
    def train(self) -> Labelled:
        """x (n, d) and y (n)."""

    @property
    def validation(self) -> Labelled:
        """Of the same kind."""

    @property
    def test(self) -> Labelled:
        """Of the same kind."""


def regimes_problem(run: RegimesRun, tag_noise: float = 0.0) -> Problem:
    """
    Every seed with permutations, start, and a share of validation images of its own; the test images are the same for
    all.

    :param tag_noise: probability that the tag shown is another one.
    """
    seeds = [regimes_data(run.num_regimes, run.seed + seed, tag_noise=tag_noise) for seed in range(run.num_seeds)]
    pyro.set_rng_seed(run.seed)
    stack = (run.num_seeds,)
    mixture = regimes_mixture(IndependentRouting, run.num_regimes, stack, run.capacity_factor)
    num_features = NUM_PIXELS + run.num_regimes
    return Problem(
        run,
        *stacked_parts(seeds),
        mixture,
        cost_baseline=lambda: StackedCostBaseline(stack, in_features=num_features),
        posterior=lambda: PosteriorNetwork(
            StackedLinear(stack, num_features + NUM_CLASSES, run.num_regimes), lambda y: one_hot(y, NUM_CLASSES)
        ),
        identity=lambda x: brightness(BRIGHTEST * x[..., :NUM_PIXELS]),
        error=misclassified,
        oracle=regime_of,
        serving=True,
        batch_size=run.batch_size,
    )


def table_problem(run: TableRun) -> Problem:
    """Every seed with a start, and a tenth of validation rows of its own; the test rows are the same for all."""
    seeds = [table_data(run.table, run.seed + seed) for seed in range(run.num_seeds)]
    pyro.set_rng_seed(run.seed)
    problem = regression_problem(run, seeds, table_mixture)
    shape = problem.train[0].shape[-1], 1, (run.num_seeds,)
    wide = partial(table_mixture, IndependentRouting, *shape, hidden_features=run.num_experts * HIDDEN)
    return replace(problem, wide=wide)


def regression_problem(
    run: TableRun,
    seeds: Sequence[TableData],
    make_mixture: Callable[..., MixtureOfExperts],
    oracle: Callable[[Tensor], Tensor] | None = None,
) -> Problem:
    """
    What the tasks on tables have in common.

    :param seeds: the data of every seed.
    :param make_mixture: from procedure, numbers of features and experts, stack and capacity factor, untrained.
    """
    stack = (run.num_seeds,)
    num_features = seeds[0].train[0].shape[-1]
    mixture = make_mixture(IndependentRouting, num_features, run.num_experts, stack, run.capacity_factor)
    network = partial(stacked_network, stack, num_features + 1, run.num_experts, ROUTER_HIDDEN)
    return Problem(
        run,
        *stacked_parts(seeds),
        mixture,
        cost_baseline=lambda: StackedCostBaseline(stack, in_features=num_features),
        posterior=lambda: PosteriorNetwork(network(), lambda y: y.unsqueeze(-1)),
        identity=brightness,
        error=error_of_mean,
        oracle=oracle,
        serving=True,
        robust=ROBUST,
        rows=torch.stack([data.test_rows if run.judged_on == "test" else data.validation_rows for data in seeds]),
        batch_size=run.batch_size,
        schedule=cosine,
    )


def stacked_parts(seeds: Sequence[Parts]) -> tuple[Labelled, Labelled, Labelled]:
    """Training, validation and test part of every seed, (n, d) and (n) each, as (seeds, n, d) and (seeds, n)."""
    return (
        _stacked([data.train for data in seeds]),
        _stacked([data.validation for data in seeds]),
        _stacked([data.test for data in seeds]),
    )


def _stacked(parts: Sequence[Labelled]) -> Labelled:
    x, y = zip(*parts)
    return torch.stack(x), torch.stack(y)


def error_of_mean(out: Tensor, y: Tensor) -> Tensor:
    """Root-mean-square error of the mean, the first of the outputs, (*batch)."""
    return (out[..., 0] - y).square().mean(-1).sqrt()
