"""What is learnt: data, the model that every arm starts from, and how an output is judged."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from inference.study.settings import DigitsRun, PiecesRun, StackedRun, ToyRun
from models.digits import NUM_CLASSES, NUM_PIXELS, CostBaseline, digits_data, digits_mixture
from models.pieces import PosteriorNetwork, draw_pieces, pieces_mixture, stacked_network
from models.piecewise import (
    StackedCostBaseline,
    piecewise_data,
    piecewise_mean,
    piecewise_mixture,
    piecewise_nll,
)
from prob_moe.distributions import IndependentRouting
from prob_moe.mixture import MixtureOfExperts

Labelled = tuple[Tensor, Tensor]

NUM_TEST = 1000
#: nats that a datapoint can cost at most in a robust score
ROBUST = 10.0
DECAYING = {"use_decaying_avg_baseline": True}


@dataclass(frozen=True)
class Problem:
    """
    :param train: (x, y) of shapes (*batch, n, d) and (*batch, n).
    :param test: held-out data of the same kind, in one batch: those that the run is judged on.
    :param mixture: untrained, with a decaying-average baseline.
    :param load_balancing: weight of the load-balancing loss.
    :param cost_baseline: makes a network that predicts a datapoint's cost, (*batch, n, d) -> (*batch, n).
    :param posterior: makes a network for a guide that knows y, from (*batch, n, d) and (*batch, n) to logits
        (*batch, n, k).
    :param identity: what hash routing knows of a datapoint, (*batch, n, d) -> long (*batch, n).
    :param error: of served outputs, (*batch, n, out) and (*batch, n) -> (*batch).
    :param oracle: the right expert of every datapoint, (*batch, n, d) -> long (*batch, n); None where nobody knows.
    :param truth: NLL of the true process on the test data, nats per datapoint, (*batch); None where nobody knows it.
    :param grid: what a picture of a stack's first model shows: some x (*batch, 100, 1) and the true means there
        (*batch, 100); None where x has more dimensions.
    :param serving: whether the model is also judged as served by one, two and all experts.
    :param robust: nats that a test datapoint can cost at most in a robust score; None for no such score.
    :param rows: numbers of the test datapoints in the table that they come from, long (*batch, n).
    """

    train: Labelled
    test: Labelled
    mixture: MixtureOfExperts
    load_balancing: float
    cost_baseline: Callable[[], nn.Module]
    posterior: Callable[[], nn.Module]
    identity: Callable[[Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]
    oracle: Callable[[Tensor], Tensor] | None = None
    truth: Tensor | None = None
    grid: Labelled | None = None
    serving: bool = False
    robust: float | None = None
    rows: Tensor | None = None


def toy_problem(run: ToyRun) -> Problem:
    """All seeds of a toy run, stacked: the same data and start for every arm and setting."""
    pyro.set_rng_seed(run.seed)
    stack = (run.num_seeds,)
    train = piecewise_data(stack, run.num_datapoints, run.break_at)
    test = piecewise_data(stack, NUM_TEST, run.break_at)
    mixture = piecewise_mixture(IndependentRouting, stack, capacity_factor=run.capacity_factor)
    if run.judged_on == "validation":  # drawn last: it changes nothing else
        test = piecewise_data(stack, NUM_TEST, run.break_at)
    return Problem(
        train,
        test,
        mixture,
        run.load_balancing,
        oracle=lambda x: (x.squeeze(-1) >= run.break_at).long(),
        truth=piecewise_nll(test, run.break_at),
        **_stacked(run, 2, partial(piecewise_mean, break_at=run.break_at)),
    )


def pieces_problem(run: PiecesRun) -> Problem:
    """All seeds, stacked, each with a line, data and a start of its own: the same for every arm and setting."""
    pyro.set_rng_seed(run.seed)
    stack = (run.num_seeds,)
    pieces = draw_pieces(stack, run.num_pieces)
    train, test = pieces.data(run.num_datapoints), pieces.data(NUM_TEST)
    mixture = pieces_mixture(IndependentRouting, run.num_pieces, stack, run.capacity_factor)
    if run.judged_on == "validation":  # drawn last: it changes nothing else
        test = pieces.data(NUM_TEST)
    return Problem(
        train,
        test,
        mixture,
        run.load_balancing,
        oracle=pieces.piece,
        truth=pieces.nll(test),
        **_stacked(run, run.num_pieces, pieces.mean),
    )


#: of 100 parts of (0, 1)
MIDDLES = (torch.arange(100) + 0.5) / 100


def _stacked(run: StackedRun, num_experts: int, mean: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """What the tasks with x in (0, 1) and a Gaussian y have in common."""
    stack = (run.num_seeds,)
    x = MIDDLES.expand(*stack, -1)
    return {
        "cost_baseline": lambda: StackedCostBaseline(stack),
        "posterior": lambda: PosteriorNetwork(stacked_network(stack, 2, num_experts), lambda y: y.unsqueeze(-1)),
        "identity": tenth,
        "error": root_mean_square,
        "grid": (x.unsqueeze(-1), mean(x)),
        "serving": True,
        "robust": ROBUST,
    }


def digits_problem(run: DigitsRun) -> Problem:
    """One seed of the digits: the split is always the same, the start is the seed's."""
    data = digits_data()
    pyro.set_rng_seed(run.seed)
    mixture = digits_mixture(
        IndependentRouting,
        capacity_factor=run.capacity_factor,
        baseline=DECAYING,
    )
    assert isinstance(mixture, MixtureOfExperts)
    return Problem(
        data.train,
        getattr(data, run.judged_on),
        mixture,
        run.load_balancing,
        cost_baseline=lambda: CostBaseline(NUM_PIXELS),
        posterior=lambda: PosteriorNetwork(
            nn.Linear(NUM_PIXELS + NUM_CLASSES, mixture.experts.num_experts), lambda y: one_hot(y, NUM_CLASSES)
        ),
        identity=brightness,
        error=misclassified,
    )


def tenth(x: Tensor) -> Tensor:
    """In which tenth of (0, 1) a datapoint lies."""
    return (10 * x.squeeze(-1)).long()


def brightness(x: Tensor) -> Tensor:
    """The sum of the pixels, rounded."""
    return x.sum(-1).round().long()


def root_mean_square(out: Tensor, y: Tensor) -> Tensor:
    """Root-mean-square error, (*batch)."""
    return (out.squeeze(-1) - y).square().mean(-1).sqrt()


def misclassified(out: Tensor, y: Tensor) -> Tensor:
    """Share of datapoints whose largest logit is not the right class, (*batch)."""
    return (out.argmax(-1) != y).to(out.dtype).mean(-1)
