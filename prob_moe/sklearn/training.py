"""Networks trained in minibatches, on the exact marginal likelihood or on the mixture bound."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from prob_moe.sklearn.networks import Networks
from prob_moe.sklearn.problem import Problem
from prob_moe.sklearn.table import Floats

#: Rows below which none are set aside for validation.
FEWEST = 30

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


class Keeper(Protocol):
    """Where a fit is kept while it goes on, so that it can be stopped."""

    def load(self, number: int) -> dict[str, Any] | None:
        """:returns: what was kept last of a fit, counted from 0; None if nothing was."""

    def keep(self, number: int, state: Callable[[], dict[str, Any]]) -> None:
        """:param state: makes what there is to be kept: tensors and plain values."""


class Training:
    """
    Adam on minibatches of rows, with a learning rate that ends at zero along a cosine, and a normal prior of mean 0 on
    all weights, which stand for standardised columns.

    :param problem: without units.
    :param seed: of weights, order and draws.
    """

    def __init__(self, problem: Problem, options: Options, seed: int) -> None:
        self.problem, self.options = problem, options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = initial_networks(problem, options)
        self.draws = torch.Generator().manual_seed(seed)
        n = len(problem.columns)
        order = torch.randperm(n, generator=self.draws)
        aside = int(options.validation_fraction * n) if n >= FEWEST else 0
        self.held, self.rows = order[:aside], order[aside:]
        self.batch = min(options.batch_size, len(self.rows))
        self.per_epoch = -(-len(self.rows) // self.batch)
        self.num_steps = STEPS if options.num_epochs is None else options.num_epochs * self.per_epoch
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=options.learning_rate)
        self.done, self.best, self.kept = 0, -math.inf, self._weights()
        self.curve: list[list[float]] = []
        self.losses: list[float] = []
        self.waiting: list[Tensor] = []

    def step(self) -> None:
        if not self.waiting:
            order = torch.randperm(len(self.rows), generator=self.draws)
            self.waiting = list(self.rows[order].split(self.batch)) if self.per_epoch > 1 else [self.rows]
        rate = self.options.learning_rate * (1 + math.cos(math.pi * self.done / self.num_steps)) / 2
        self.optimizer.param_groups[0]["lr"] = rate
        loss = _loss(self.networks, self.problem, self.waiting.pop(), self.options.num_selected, self.draws)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())
        self.done += 1

    def look(self) -> None:
        """Note the losses since the last look, and keep the parameters if the rows set aside say so."""
        score = _mean_log_likelihood(self.networks, self.problem, self.held) if len(self.held) else math.nan
        self.curve.append([float(np.mean(self.losses)), -score, self.done / self.per_epoch])
        self.losses = []
        if score > self.best:
            self.best, self.kept = score, self._weights()

    def finish(self) -> Trained:
        """:raises ValueError: the likelihood is not finite."""
        if len(self.held):
            self.networks.load_state_dict(self.kept)
        else:
            self.best = _mean_log_likelihood(self.networks, self.problem, self.rows)
        if not math.isfinite(self.best):
            rate = self.options.learning_rate
            raise ValueError(f"the likelihood is not finite after {self.done} steps; lower learning_rate={rate}")
        return Trained(self.networks, self.best, np.array(self.curve))

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on, right after a look."""
        return {
            "networks": self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "draws": self.draws.get_state(),
            "waiting": list(self.waiting),
            "kept": dict(self.kept),
            "best": torch.tensor(self.best, dtype=torch.float64),
            "curve": torch.tensor(self.curve, dtype=torch.float64).reshape(-1, 3),
            "done": self.done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.networks.load_state_dict(state["networks"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.draws.set_state(state["draws"])
        self.waiting, self.kept, self.best = list(state["waiting"]), state["kept"], float(state["best"])
        self.curve, self.done = state["curve"].tolist(), state["done"]

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.networks.state_dict().items()}


def train(
    problem: Problem,
    options: Options,
    generator: np.random.RandomState,
    number: int = 0,
    keeper: Keeper | None = None,
) -> Trained:
    """
    :param number: of the fit among several.
    :param keeper: that has what was done of it before, and keeps what will be; None for none.
    """
    training = Training(problem, options, int(generator.randint(2**31 - 1)))
    before = None if keeper is None else keeper.load(number)
    if before is not None:
        training.load_state_dict(before)
    every = max(1, training.num_steps // LOOKS)
    while training.done < training.num_steps:
        training.step()
        if training.done % every == 0 or training.done == training.num_steps:
            training.look()
            if keeper is not None:
                keeper.keep(number, training.state_dict)
    return training.finish()


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
