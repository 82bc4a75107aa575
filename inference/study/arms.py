"""The registry of arms: every way to train, with the objective that it aims at."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from inference.study.learners import BalancedObjective, ExactGradient, GatedLearner, Learner, RouterObjective
from inference.study.problems import Problem
from prob_moe import routers
from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.routers import Router


class Group(StrEnum):
    """What an arm aims at, in the order of tables and pictures."""

    ROUTER = "router objective, unbiased"
    TWIN = "router objective, biased"
    BALANCED = "balanced objective, unbiased"
    GATED = "sampled gate"
    OWN = "its own deterministic model"


@dataclass(frozen=True)
class Arm:
    """
    One way to train.

    :param name: how tables and pictures call it.
    :param objective: what its gradient is exact for, or aims at.
    :param build: from a problem, whose mixture it may keep, to a learner.
    """

    name: str
    group: Group
    objective: str
    build: Callable[[Problem], Learner]


def _exact(problem: Problem) -> Learner:
    return ExactGradient(problem.mixture)


def _sampled(problem: Problem, assignment: type[AssignmentDistribution], weighted: bool = True) -> Learner:
    return RouterObjective(problem.mixture, assignment, weighted=weighted)


def _learned_baseline(problem: Problem) -> Learner:
    problem.mixture.baseline = problem.cost_baseline()
    return RouterObjective(problem.mixture, IndependentRouting)


def _balanced(problem: Problem, assignment: type[AssignmentDistribution]) -> Learner:
    return BalancedObjective(problem.mixture, assignment)


