"""From a table to the best maximum: starts, expectation maximisation, second-order finish, choice."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prob_moe.sklearn.derivatives import LARGEST
from prob_moe.sklearn.em import expectation_maximisation
from prob_moe.sklearn.newton import Finish, newton
from prob_moe.sklearn.problem import Problem
from prob_moe.sklearn.starts import starting_vectors

#: The least scale, relative to that of one expert for the whole table.
FLOOR = 1e-3

#: The least scale of that one expert, of a standardised y.
SMALLEST = 1e-6

#: The ridge may cost so many nats.
RIDGE_COST = 1e-4

#: Maxima that differ by less, in nats, are the same; the one that was found first is returned.
TIE = 1e-8


class Maximum(NamedTuple):
    """
    :param problem: with the ridge at which the maximum was taken.
    :param vector: the parameters, (D,).
    :param log_likelihood: without the ridge, nats.
    :param converged: whether the second-order finish came to rest.
    :param on_the_floor: whether a dispersion is as small as it may be, because nothing better was found off the floor.
    :param floor_log_likelihood: the best maximum on the floor, nats; -inf if there was none.
    :param all_values: penalised log-likelihoods of all starts, nats, (restarts,).
    """

    problem: Problem
    vector: Tensor
    log_likelihood: float
    converged: bool
    on_the_floor: bool
    floor_log_likelihood: float
    all_values: Tensor


@torch.no_grad()
def find_maximum(problem: Problem, restarts: int, generator: np.random.RandomState) -> Maximum:
    """
    :param restarts: number of starts; one expert needs one.
    """
    found, values, converged = _all_maxima(problem, restarts, generator)
    floor = problem.on_the_floor(found)
    floor_best = values.masked_fill(~floor, -torch.inf).max()
    place = _best_off_the_floor(problem, found, values)
    problem, last = _lower_ridge(problem, found[place].unsqueeze(0), converged[place].unsqueeze(0))
    return Maximum(
        problem,
        last.vectors[0],
        float(problem.log_likelihood(last.vectors)),
        bool(last.converged),
        bool(problem.on_the_floor(last.vectors)),
        float(floor_best),
        values,
    )


@torch.no_grad()
def one_expert_floors(problem: Problem) -> Tensor:
    """:returns: the least logarithms of dispersions; the scale's is relative to that of one expert for the table."""
    if not problem.family.num_dispersions:
        return problem.floors
    one = replace(problem, num_experts=1, floors=problem.floors.clamp(min=math.log(SMALLEST)))
    start = one.layout.join(one.family.flat(one))
    scale = newton(one, expectation_maximisation(one, start)).vectors[0, one.layout.dispersion_places()[0, 0]]
    return torch.cat([(scale + math.log(FLOOR)).view(1), problem.floors[1:]])


def _all_maxima(problem: Problem, restarts: int, generator: np.random.RandomState) -> Finish:
    """Where the starts lead to; those of a mixture of several experts know one of fewer."""
    if problem.num_experts == 1:
        starts, smaller = problem.layout.join(problem.family.flat(problem)), None
    else:
        fewer = replace(problem, num_experts=problem.num_experts - 1)
        found = _all_maxima(fewer, max(1, restarts // 2), generator)
        place = _best_off_the_floor(fewer, found.vectors, found.values)
        smaller = fewer.log_joint(found.vectors[place].unsqueeze(0))[0]
        starts = starting_vectors(problem, restarts, generator, smaller)
    # The first steps decide which maximum it will be, and Newton's are few and cheap.
    together = max(1, LARGEST // (problem.num_experts * problem.columns.numel()))
    groups = [newton(problem, expectation_maximisation(problem, group)) for group in starts.split(together)]
    return Finish(*(torch.cat(tensors) for tensors in zip(*groups)))


def _best_off_the_floor(problem: Problem, vectors: Tensor, values: Tensor) -> int:
    floor = problem.on_the_floor(vectors)
    values = values if bool(floor.all()) else values.masked_fill(floor, -torch.inf)
    return int((values >= values.max() - TIE).nonzero()[0])


def _lower_ridge(problem: Problem, vectors: Tensor, converged: Tensor) -> tuple[Problem, Finish]:
    """The maximum under a ridge that costs no more than it may."""
    finish = Finish(vectors, problem.value(vectors), converged)
    for _ in range(8):
        cost = float(problem.penalty(finish.vectors))
        if cost <= RIDGE_COST:
            break
        problem = replace(problem, ridge=problem.ridge * RIDGE_COST / cost / 10)
        finish = newton(problem, finish.vectors)
    return problem, finish
