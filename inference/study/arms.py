"""The registry of arms: every way to train, with the objective that it aims at."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from inference.study.learners import BalancedObjective, ExactGradient, GatedLearner, Learner, RouterObjective
from inference.study.problems import Problem
from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.routers import Router
from prob_moe.routers.base_layer import BASELayer
from prob_moe.routers.sinkhorn import SinkhornBASE
from prob_moe.routers.expert_choice import ExpertChoice
from prob_moe.routers.sigma_moe import SigmaMoE
from prob_moe.routers.smear import SMEAR
from prob_moe.routers.soft_moe import SoftMoE


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


def _gated(
    problem: Problem, router: type[Router], balancing: str | None = None, serves_all: bool = True, **options: Any
) -> Learner:
    """
    :param balancing: the router's own option for the weight of its load-balancing loss; else it pays Switch's.
    :param serves_all: whether to serve without a limit on the loads. The code of Switch Transformers serves with twice
        the capacity; here that is no limit. Where the capacity decides what is computed, it stays.
    """
    mixture = problem.mixture
    if balancing is not None:
        options[balancing] = mixture.load_balancing
    weight = 0.0 if balancing is not None else mixture.load_balancing
    return GatedLearner(mixture, router(**options), load_balancing=weight, serves_all=serves_all)


def _limited(problem: Problem, router: type[Router], **options: Any) -> Learner:
    return _gated(problem, router, capacity_factor=problem.mixture.capacity_factor, **options)


def _base(problem: Problem) -> Learner:
    """The input is mixed into the output where both have the same features."""
    experts = problem.mixture.experts
    return _limited(problem, BASELayer, carry=experts.in_features == experts.out_features)


def _alternative(name: str, group: Group, router: type[Router], build: Callable[[Problem], Learner]) -> Arm:
    return Arm(name, group, router.objective, build)


_R = "R, the router objective"
_B = "B, the balanced objective of its procedure"

_ALL = (
    Arm("exact gradient", Group.ROUTER, _R, _exact),
    Arm("independent", Group.ROUTER, _R, partial(_sampled, assignment=IndependentRouting)),
    Arm("RL-R", Group.ROUTER, _R, _learned_baseline),
    Arm("skip", Group.ROUTER, _R, partial(_sampled, assignment=CapacitySkip)),
    Arm("Gumbel-Matching", Group.ROUTER, _R, partial(_sampled, assignment=GumbelMatching)),
    Arm("dependent rounding", Group.ROUTER, _R, partial(_sampled, assignment=DependentRounding)),
    Arm(
        "skip, unweighted",
        Group.TWIN,
        "none: the unweighted twin of skip",
        partial(_sampled, assignment=CapacitySkip, weighted=False),
    ),
    Arm(
        "Gumbel-Matching, unweighted",
        Group.TWIN,
        "none: the unweighted twin of Gumbel-Matching",
        partial(_sampled, assignment=GumbelMatching, weighted=False),
    ),
    Arm("skip, balanced", Group.BALANCED, _B, partial(_balanced, assignment=CapacitySkip)),
    Arm("Gumbel-Matching, balanced", Group.BALANCED, _B, partial(_balanced, assignment=GumbelMatching)),
    _alternative("BASE", Group.OWN, BASELayer, _base),
    _alternative("S-BASE", Group.OWN, SinkhornBASE, partial(_limited, router=SinkhornBASE)),
    _alternative(
        "expert choice",
        Group.OWN,
        ExpertChoice,
        partial(_limited, router=ExpertChoice, serves_all=False),
    ),
    _alternative(
        "σ-MoE",
        Group.OWN,
        SigmaMoE,
        partial(_limited, router=SigmaMoE, balancing="entropy_weight", num_selected=1),
    ),
    _alternative("SMEAR", Group.OWN, SMEAR, partial(_gated, router=SMEAR)),
    _alternative("Soft MoE", Group.OWN, SoftMoE, partial(_gated, router=SoftMoE, serves_all=False)),
)

#: all arms by name
ARMS = {arm.name: arm for arm in _ALL}

#: the estimators of the router objective and their twins, which the quick study runs
CORE = tuple(arm.name for arm in _ALL if arm.group in (Group.ROUTER, Group.TWIN))
