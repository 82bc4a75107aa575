"""One run: train an arm on its problem, and measure it on held-out data."""

import time
from collections.abc import Callable
from typing import Any

import pyro
import torch
from torch import Tensor

from inference.study.arms import all_arms
from inference.study.cache import Record, short
from inference.study.language import LanguageRun, train_language
from inference.study.learners import Learner
from inference.study.minibatch_problems import regimes_problem, table_problem
from inference.study.problems import Labelled, Problem, digits_problem, pieces_problem, toy_problem
from inference.study.regime_problems import REGIME_PROBLEMS
from inference.study.serving import measure_serving
from inference.study.settings import DigitsRun, PiecesRun, RegimesRun, Run, SeedsRun, TableRun, ToyRun
from inference.training.batches import Minibatches
from inference.training.trainer import NonFiniteLossError, steps

#: steps between two looks at the held-out data
LOOK_EVERY = 50
#: test datapoints that are looked at then
NUM_WATCHED = 2000
QUARTILES = (0.25, 0.5, 0.75)


#: what is learnt, by kind of run
PROBLEMS: dict[type[Run], Callable[[Any], Problem]] = {
    ToyRun: toy_problem,
    PiecesRun: pieces_problem,
    DigitsRun: digits_problem,
    RegimesRun: regimes_problem,
    TableRun: table_problem,
    **REGIME_PROBLEMS,
}


def problem_of(run: Run) -> Problem:
    """
    :raises NotImplementedError: on a kind of run that has no problem.
    """
    if type(run) not in PROBLEMS:
        raise NotImplementedError(f"no problem is known for {type(run).__name__}")
    return PROBLEMS[type(run)](run)


def train(run: Run) -> Record:
    """Train and measure on one thread; the result depends on the settings of the run only."""
    # The tensors are too small to share between threads, and other runs want the other cores.
    torch.set_num_threads(1)
    if isinstance(run, LanguageRun):
        return train_language(run)
    problem = problem_of(run)
    # All arms draw from the same state on.
    pyro.set_rng_seed(run.seed)
    learner = all_arms()[run.arm].build(problem)
    if problem.batch_size is None:
        return _fit(run, problem, learner, lambda: learner.loss(*problem.train), _num_steps(run, 1))
    batches = Minibatches(*problem.train, batch_size=problem.batch_size, dim=problem.train[1].dim() - 1)
    return _fit(run, problem, learner, lambda: learner.loss(*next(batches)), _num_steps(run, len(batches)))


def _num_steps(run: Run, steps_per_epoch: int) -> int:
    if isinstance(run, DigitsRun):
        return run.num_epochs * steps_per_epoch
    assert isinstance(run, SeedsRun)
    return run.num_steps


def _fit(run: Run, problem: Problem, learner: Learner, loss: Callable[[], Tensor], num_steps: int) -> Record:
    start = time.process_time()
    curve: dict[str, list[float]] = {"step": [], "low": [], "median": [], "high": []}
    stopped_at = None
    x, y = problem.held_out
    watched = x[..., :NUM_WATCHED, :], y[..., :NUM_WATCHED]
    try:
        trained = steps(learner, loss, num_steps=num_steps, learning_rate=run.learning_rate, schedule=problem.schedule)
        for step, _ in trained:
            learner.after_step()
            if step % LOOK_EVERY == 0 or step + 1 == num_steps:
                quartiles = _nll(learner, watched).double().quantile(torch.tensor(QUARTILES, dtype=torch.double))
                for name, value in zip(curve, (step + 1, *quartiles.tolist())):
                    curve[name].append(short(value))
    except NonFiniteLossError as error:
        # An outcome like any other: it is measured at its last finite parameters.
        stopped_at = error.step
    served, rows = measure_serving(learner, problem) if problem.serving else ({}, {})
    return Record(
        run.settings(),
        _metrics(learner, problem) | {name: _short_list(values) for name, values in served.items()},
        time.process_time() - start,
        curve,
        {} if problem.grid is None else _picture(learner, *problem.grid),
        stopped_at,
        rows,
    )


def _nll(learner: Learner, data: Labelled) -> Tensor:
    """(models), nats per datapoint."""
    with torch.no_grad():
        return -learner.log_predictive(*data).mean(-1).reshape(-1)


def _metrics(learner: Learner, problem: Problem) -> dict[str, list[float]]:
    with torch.no_grad():
        error = problem.error(learner.serve(problem.held_out[0]), problem.held_out[1])
    measured = {"nll": _nll(learner, problem.held_out), "error": error.reshape(-1)}
    if problem.truth is not None:
        measured["truth"] = problem.truth(problem.held_out).reshape(-1)
    return {name: _short_list(values) for name, values in measured.items()}


@torch.no_grad()
def _picture(learner: Learner, x: Tensor, mean: Tensor) -> dict[str, list[Any]]:
    """The first model of a stack at some x, (stack, n, 1)."""
    mixture = learner.mixture
    drawn = {
        "x": x[0, :, 0],
        "mean": mean[0],
        "lines": mixture.experts.dense(x)[0, ..., 0].mT,
        "probabilities": mixture.router(x).softmax(-1)[0].mT,
        "served": learner.serve(x)[0, :, 0],
    }
    return {name: values.double().round(decimals=4).tolist() for name, values in drawn.items()}


def _short_list(values: Tensor) -> list[float]:
    return [short(value) for value in values.tolist()]
