"""What is learnt: data, the model that every arm starts from, and how an output is judged."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from inference.study.settings import DigitsRun, PiecesRun, Run, StackedRun, ToyRun
from inference.training.schedule import constant
from models.digits import HIDDEN, NUM_CLASSES, NUM_EXPERTS, NUM_PIXELS, CostBaseline, digits_data, digits_mixture
from models.pieces import Pieces, PosteriorNetwork, draw_pieces, pieces_mixture, stacked_network
from models.piecewise import (
    PiecewiseData,
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
    Data, the model that every arm starts from, and how an output is judged. The training part is the same whatever the
    run is judged on, and the test part is never trained on, under any seed.

    :param run: what the problem is of.
    :param train: (x, y) of shapes (*batch, n, d) and (*batch, n).
    :param validation: held-out data of the same kind, in one batch; and so
    :param test:
    :param mixture: untrained, with a decaying-average baseline.
    :param cost_baseline: makes a network that predicts a datapoint's cost, (*batch, n, d) -> (*batch, n).
    :param posterior: makes a network for a guide that knows y, from (*batch, n, d) and (*batch, n) to logits
        (*batch, n, k).
    :param identity: what hash routing knows of a datapoint, (*batch, n, d) -> long (*batch, n).
    :param error: of served outputs, (*batch, n, out) and (*batch, n) -> (*batch).
    :param oracle: the right expert of every datapoint, (*batch, n, d) -> long (*batch, n); None where nobody knows.
    :param truth: NLL of the true process on data (x, y), nats per datapoint, (*batch); None where nobody knows it.
    :param grid: what a picture of a stack's first model shows: some x (*batch, 100, 1) and the true means there
        (*batch, 100); None where x has more dimensions.
    :param serving: whether the model is also judged as served by one, two and all experts.
    :param robust: nats that a held-out datapoint can cost at most in a robust score; None for no such score.
    :param wide: makes a mixture of one expert with the hidden units of all; None where experts have none.
    :param rows: numbers of the held-out datapoints in the table that they come from, long (*batch, n).
    :param batch_size: datapoints of a step, in passes of a new random order; None for all.
    :param schedule: of the learning rate, see :mod:`inference.training.schedule`.
    """

    run: Run
    train: Labelled
    validation: Labelled
    test: Labelled
    mixture: MixtureOfExperts
    cost_baseline: Callable[[], nn.Module]
    posterior: Callable[[], nn.Module]
    identity: Callable[[Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]
    oracle: Callable[[Tensor], Tensor] | None = None
    truth: Callable[[Labelled], Tensor] | None = None
    grid: Labelled | None = None
    serving: bool = False
    robust: float | None = None
    rows: Tensor | None = None
    wide: Callable[[], MixtureOfExperts] | None = None
    batch_size: int | None = None
    schedule: Callable[[int, int], float] = constant

    @property
    def held_out(self) -> Labelled:
        """What the run is judged on."""
        return self.test if self.run.judged_on == "test" else self.validation

    @property
    def load_balancing(self) -> float:
        """Weight of the load-balancing loss."""
        return self.run.load_balancing


def toy_problem(run: ToyRun) -> Problem:
    """All seeds of a toy run, stacked: the same data and start for every arm and setting."""
    pyro.set_rng_seed(run.seed)
    stack = (run.num_seeds,)
    sizes = run.num_datapoints, NUM_TEST, NUM_TEST
    train, validation, test = (piecewise_data(stack, size, run.break_at) for size in sizes)
    mixture = piecewise_mixture(IndependentRouting, stack, capacity_factor=run.capacity_factor)
    return Problem(
        run,
        train,
        validation,
        test,
        mixture,
        oracle=lambda x: (x.squeeze(-1) >= run.break_at).long(),
        truth=lambda data: piecewise_nll(PiecewiseData(*data), run.break_at),
        **_stacked(run, 2, partial(piecewise_mean, break_at=run.break_at)),
    )


def pieces_problem(run: PiecesRun, draw: Callable[[tuple[int, ...], int], Pieces] = draw_pieces) -> Problem:
    """
    All seeds, stacked, each with a line, data and a start of its own: the same for every arm and setting.

    :param draw: the lines, from batch shape and number of pieces.
    """
    pyro.set_rng_seed(run.seed)
    stack = (run.num_seeds,)
    pieces = draw(stack, run.num_pieces)
    train, validation, test = map(pieces.data, (run.num_datapoints, NUM_TEST, NUM_TEST))
    mixture = pieces_mixture(IndependentRouting, run.num_pieces, stack, run.capacity_factor)
    return Problem(
        run,
        train,
        validation,
        test,
        mixture,
        oracle=pieces.piece,
        truth=lambda data: pieces.nll(PiecewiseData(*data)),
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

    def mixture_of(num_experts: int, hidden_features: int) -> MixtureOfExperts:
        made = digits_mixture(
            IndependentRouting,
            num_experts=num_experts,
            hidden_features=hidden_features,
            capacity_factor=run.capacity_factor,
            baseline=DECAYING,
        )
        assert isinstance(made, MixtureOfExperts)
        return made

    mixture = mixture_of(NUM_EXPERTS, HIDDEN)
    return Problem(
        run,
        data.train,
        data.validation,
        data.test,
        mixture,
        cost_baseline=lambda: CostBaseline(NUM_PIXELS),
        posterior=lambda: PosteriorNetwork(
            nn.Linear(NUM_PIXELS + NUM_CLASSES, mixture.experts.num_experts), lambda y: one_hot(y, NUM_CLASSES)
        ),
        identity=brightness,
        error=misclassified,
        batch_size=run.batch_size,
        wide=lambda: mixture_of(1, NUM_EXPERTS * HIDDEN),
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
