"""Tasks that were made so that routing matters: their problems."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from inference.study.minibatch_problems import regimes_problem, regression_problem, stacked_parts
from inference.study.problems import Problem, brightness, misclassified, pieces_problem
from inference.study.regime_settings import DomainsRun, NoisyTagRun, PlantedRun, RotatedRun, TwinsRun
from inference.study.settings import Run
from inference.training.schedule import cosine
from models.digits import NUM_CLASSES, NUM_PIXELS
from models.domain_texts import NUM_SYMBOLS
from models.domains import CONTEXT, NUM_FEATURES, domains_data, domains_mixture
from models.pieces import PosteriorNetwork, draw_twins, stacked_network
from models.piecewise import StackedCostBaseline
from models.planted import planted_data, planted_mixture, planted_regime
from models.regimes import BRIGHTEST
from models.remembered import Remembered
from models.rotated import NUM_TURNS, quarter_turns, rotated_data, rotated_mixture
from prob_moe.distributions import IndependentRouting


def twins_problem(run: TwinsRun) -> Problem:
    """Lines whose first two pieces are one: the oracle gives each half an expert, any other partition is as good."""
    return pieces_problem(run, draw_twins)


def noisy_tag_problem(run: NoisyTagRun) -> Problem:
    """Digits in regimes, with some tags wrong in training and held-out parts alike."""
    return regimes_problem(run, run.tag_noise)


def rotated_problem(run: RotatedRun) -> Problem:
    """
    Every seed with permutations, start, and a share of validation images of its own; the test images are the same for
    all.
    """
    seeds = [rotated_data(run.seed + seed) for seed in range(run.num_seeds)]
    pyro.set_rng_seed(run.seed)
    stack = (run.num_seeds,)
    return Problem(
        run,
        *stacked_parts(seeds),
        rotated_mixture(IndependentRouting, stack, run.capacity_factor, run.hidden_router),
        cost_baseline=lambda: StackedCostBaseline(stack, in_features=NUM_PIXELS),
        posterior=lambda: PosteriorNetwork(
            stacked_network(stack, NUM_PIXELS + NUM_CLASSES, NUM_TURNS), lambda y: one_hot(y, NUM_CLASSES)
        ),
        identity=lambda x: brightness(BRIGHTEST * x),
        error=misclassified,
        oracle=quarter_turns(),
        serving=True,
        batch_size=run.batch_size,
    )


def planted_problem(run: PlantedRun) -> Problem:
    """Every seed with factors, start, and a tenth of validation rows of its own; the test rows are the same for all."""
    seeds = [planted_data(run.seed + seed) for seed in range(run.num_seeds)]
    pyro.set_rng_seed(run.seed)
    return regression_problem(run, seeds, planted_mixture, planted_regime)


def domains_problem(run: DomainsRun) -> Problem:
    """Every seed with an alphabet, places and a start of its own; the pieces of text for each part are the same."""
    seeds = [domains_data(run.seed + seed) for seed in range(run.num_seeds)]
    pyro.set_rng_seed(run.seed)
    stack = (run.num_seeds,)
    return Problem(
        run,
        *stacked_parts(seeds),
        domains_mixture(IndependentRouting, run.num_experts, stack, run.capacity_factor),
        cost_baseline=lambda: StackedCostBaseline(stack, in_features=NUM_FEATURES),
        posterior=lambda: PosteriorNetwork(
            stacked_network(stack, NUM_FEATURES + NUM_SYMBOLS, run.num_experts), lambda y: one_hot(y, NUM_SYMBOLS)
        ),
        identity=last_symbol,
        error=misclassified,
        oracle=partial(_of_each_seed, [data.domain for data in seeds]),
        serving=True,
        batch_size=run.batch_size,
        schedule=cosine,
    )


def last_symbol(x: Tensor) -> Tensor:
    """The symbol before the one that is predicted."""
    return x[..., (CONTEXT - 1) * NUM_SYMBOLS : CONTEXT * NUM_SYMBOLS].argmax(-1)


def _of_each_seed(known: list[Remembered], x: Tensor) -> Tensor:
    """(seeds, n, d) -> (seeds, n)."""
    return torch.stack([groups(rows) for groups, rows in zip(known, x, strict=True)])


#: by kind of run
REGIME_PROBLEMS: dict[type[Run], Callable[[Any], Problem]] = {
    TwinsRun: twins_problem,
    NoisyTagRun: noisy_tag_problem,
    RotatedRun: rotated_problem,
    PlantedRun: planted_problem,
    DomainsRun: domains_problem,
}
