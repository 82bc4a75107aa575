"""Networks trained in minibatches, on the exact marginal likelihood or on the mixture bound."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prob_moe.sklearn.networks import Networks
from prob_moe.sklearn.problem import Problem
from prob_moe.sklearn.table import Floats

#: Rows below which none are set aside for validation.
FEWEST = 100

#: Steps of a fit, unless it is told how many epochs.
STEPS = 1000

#: How often the rows set aside are looked at.
LOOKS = 100

#: The standard deviation of a normal prior on all weights but biases.
PRIOR = 3.0

#: The largest logarithm of a dispersion.
LARGEST = math.log(1e3)


class Options(NamedTuple):
    """
    :param hidden_features: of experts; None for linear ones.
    :param router_features: of the router; None for a linear one.
    :param num_selected: for the mixture bound; None for the exact marginal.
    :param validation_fraction: of the rows that are set aside; 0 for none.
    """

    hidden_features: int | None
    router_features: int | None
    num_selected: int | None
    num_epochs: int | None
    batch_size: int
    learning_rate: float
    validation_fraction: float


class Trained(NamedTuple):
    """
    :param networks: with the best parameters: by the rows set aside, or if there are none the last ones.
    :param score: by which fits are compared, nats per row.
    :param curve: minus the objective in training and minus the log-likelihood of the rows set aside, means of nats per
        row, and the epoch, (looks, 3); the second is nan where none were set aside.
    """

    networks: Networks
    score: float
    curve: Floats


def train(problem: Problem, options: Options, generator: np.random.RandomState) -> Trained:
    """
    Adam on minibatches of rows, with a learning rate that ends at zero along a cosine, and a normal prior of mean 0 on
    all weights, which stand for standardised columns.

    :param problem: without units.
    """
    seed = int(generator.randint(2**31 - 1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = initial_networks(problem, options)
    draws = torch.Generator().manual_seed(seed)
    n = len(problem.columns)
    order = torch.randperm(n, generator=draws)
    aside = int(options.validation_fraction * n) if n >= FEWEST else 0
    held, rows = order[:aside], order[aside:]
    batch = min(options.batch_size, len(rows))
    per_epoch = -(-len(rows) // batch)
    steps = STEPS if options.num_epochs is None else options.num_epochs * per_epoch
    every = max(1, steps // LOOKS)
    optimizer = torch.optim.Adam(networks.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept, curve, losses = -math.inf, networks.state_dict(), [], []
    waiting: list[Tensor] = []
    for step in range(1, steps + 1):
        if not waiting:
            waiting = list(rows[torch.randperm(len(rows), generator=draws)].split(batch)) if per_epoch > 1 else [rows]
        loss = _loss(networks, problem, waiting.pop(), options.num_selected, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % every == 0 or step == steps:
            score = _mean_log_likelihood(networks, problem, held) if aside else math.nan
            curve.append((float(np.mean(losses)), -score, step / per_epoch))
            losses = []
            if score > best:
                best, kept = score, {name: value.clone() for name, value in networks.state_dict().items()}
    if aside:
        networks.load_state_dict(kept)
    else:
        best = _mean_log_likelihood(networks, problem, rows)
    if not math.isfinite(best):
        raise ValueError(
            f"the likelihood is not finite after {steps} steps; lower learning_rate={options.learning_rate}"
        )
    return Trained(networks, best, np.array(curve))


def initial_networks(problem: Problem, options: Options) -> Networks:
    """:returns: networks with random weights, near an expert that looks at no columns."""
    family, bounds = problem.family, torch.stack([problem.floors, problem.ceilings.clamp(max=LARGEST)])
    columns, router = problem.columns.shape[1], problem.router_columns.shape[1]
    hidden, router_hidden = options.hidden_features, options.router_features
    networks = Networks(family, problem.num_experts, columns, router, hidden, router_hidden, bounds)
    weights = problem.row_frequencies / problem.row_frequencies.sum()
    dispersions = family.flat_dispersions(problem.target, weights)
    networks.start(family.flat_predictors(problem.target, weights), dispersions)
    return networks


def _loss(
    networks: Networks, problem: Problem, rows: Tensor, num_selected: int | None, draws: torch.Generator
) -> Tensor:
    data = (problem.columns[rows], problem.router_columns[rows], problem.target[:, rows], problem.offset[rows])
    each = networks.log_marginal(*data) if num_selected is None else networks.bound(*data, num_selected, draws)
    weights = problem.unit_weights[rows]
    return -(weights @ each) / weights.sum() + networks.penalty() / PRIOR**2 / problem.unit_weights.sum()


@torch.no_grad()
def _mean_log_likelihood(networks: Networks, problem: Problem, rows: Tensor) -> float:
    total = 0.0
    for part in rows.split(4096):
        data = (problem.columns[part], problem.router_columns[part], problem.target[:, part], problem.offset[part])
        total += float(problem.unit_weights[part] @ networks.log_marginal(*data))
    return total / float(problem.unit_weights[rows].sum())
