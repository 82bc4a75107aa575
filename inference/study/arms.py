"""The registry of arms: every way to train, with the objective that it aims at."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

from inference.names import spelling
from inference.study.learners import (
    ExactGradient,
    GatedLearner,
    Learner,
    SampledObjective,
    StraightThroughLearner,
)
from inference.study.problems import Problem
from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO
from prob_moe.rules import (
    SMEAR,
    BASELayer,
    DenseMixer,
    DenseMixture,
    ExpertChoice,
    GumbelSoftmax,
    HashRouting,
    LossFreeBias,
    RoutingRule,
    SampledGate,
    SigmaMoE,
    SinkhornBASE,
    SoftMoE,
    SparseMixer,
    SparseMixerV2,
    SparsityConstrainedTransport,
    Switch,
)


class Group(StrEnum):
    """What an arm aims at, in the order of tables and pictures."""

    ROUTER = "router objective, unbiased"
    TWIN = "router objective, biased"
    BALANCED = "balanced objective, unbiased"
    GATED = "gated objective, biased"
    OWN = "sparse, deterministic"
    DENSE = "dense, deterministic"


@dataclass(frozen=True)
class Arm:
    """
    One way to train.

    :param label: how tables and pictures call it; its name is that, as one types it.
    :param objective: what its gradient is exact for, or aims at.
    :param build: from a problem, whose mixture it may keep, to a learner.
    """

    label: str
    group: Group
    objective: str
    build: Callable[[Problem], Learner]

    @property
    def name(self) -> str:
        return spelling(self.label)


def _exact(problem: Problem) -> Learner:
    return ExactGradient(problem.mixture, problem.load_balancing)


def _sampled(problem: Problem, assignment: type[AssignmentDistribution], weighted: bool = True) -> Learner:
    return SampledObjective(problem.mixture, assignment, TraceRouting_ELBO(weighted=weighted), problem.load_balancing)


def _learned_baseline(problem: Problem) -> Learner:
    problem.mixture.baseline = problem.cost_baseline()
    return _sampled(problem, IndependentRouting)


def _balanced(problem: Problem, assignment: type[AssignmentDistribution]) -> Learner:
    return SampledObjective(problem.mixture, assignment, TraceBalanced_ELBO(), problem.load_balancing)


def _gated(
    problem: Problem,
    router: type[RoutingRule],
    *,
    balancing: str | None = None,
    limited: bool = True,
    serves_all: bool = True,
    **options: Any,
) -> Learner:
    """
    :param balancing: the router's own option for the weight of its load-balancing loss; else it pays Switch's.
    :param limited: whether it has a capacity.
    :param serves_all: whether to serve without a limit on the loads. The code of Switch Transformers serves with twice
        the capacity; here that is no limit. Where the capacity decides what is computed, it stays.
    """
    mixture = problem.mixture
    if balancing is not None:
        options[balancing] = problem.load_balancing
    if limited:
        options["capacity_factor"] = mixture.capacity_factor
    weight = 0.0 if balancing is not None else problem.load_balancing
    return GatedLearner(mixture, router(**options), load_balancing=weight, serves_all=serves_all)


def _base(problem: Problem) -> Learner:
    """The input is mixed into the output where both have the same features."""
    experts = problem.mixture.experts
    return _gated(problem, BASELayer, carry=experts.in_features == experts.out_features)


def _loss_free(problem: Problem) -> Learner:
    experts = problem.mixture.experts
    return _gated(problem, LossFreeBias, num_experts=experts.num_experts, batch_shape=tuple(experts.batch_shape))


def _hash(problem: Problem) -> Learner:
    learner = _gated(problem, HashRouting)
    assert isinstance(learner, GatedLearner)
    learner.identity = problem.identity
    return learner


def _gumbel_softmax(problem: Problem) -> Learner:
    mixture = problem.mixture
    router = GumbelSoftmax(load_balancing=problem.load_balancing, capacity_factor=mixture.capacity_factor)
    return StraightThroughLearner(mixture, router, load_balancing=0.0, serves_all=True)


def _alternative(label: str, group: Group, router: type[RoutingRule], **options: Any) -> Arm:
    return Arm(label, group, router.objective, partial(_gated, router=router, **options))


_R = "router objective R"
_B = "balanced objective B of its procedure"
_SWITCHED: dict[str, Any] = {"balancing": "load_balancing"}
# With one expert a datapoint every entry of the plan is 1, so the softmax is the gate.
_TOP_1_OF_PLAN: dict[str, Any] = {"num_selected": 1, "gate": "softmax", "max_iterations": 30}

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
        "none: unweighted twin of skip",
        partial(_sampled, assignment=CapacitySkip, weighted=False),
    ),
    Arm(
        "Gumbel-Matching, unweighted",
        Group.TWIN,
        "none: unweighted twin of Gumbel-Matching",
        partial(_sampled, assignment=GumbelMatching, weighted=False),
    ),
    Arm("Gumbel-softmax", Group.TWIN, GumbelSoftmax.objective, _gumbel_softmax),
    Arm("skip, balanced", Group.BALANCED, _B, partial(_balanced, assignment=CapacitySkip)),
    Arm("Gumbel-Matching, balanced", Group.BALANCED, _B, partial(_balanced, assignment=GumbelMatching)),
    _alternative("sampled gate", Group.GATED, SampledGate, **_SWITCHED),
    _alternative("SparseMixer v1", Group.GATED, SparseMixer, **_SWITCHED),
    _alternative("SparseMixer v2", Group.GATED, SparseMixerV2, **_SWITCHED),
    _alternative("Switch", Group.OWN, Switch, **_SWITCHED),
    Arm("BASE", Group.OWN, BASELayer.objective, _base),
    _alternative("S-BASE", Group.OWN, SinkhornBASE),
    _alternative("expert choice", Group.OWN, ExpertChoice, serves_all=False),
    _alternative("σ-MoE", Group.OWN, SigmaMoE, balancing="entropy_weight", num_selected=1),
    Arm("loss-free bias", Group.OWN, LossFreeBias.objective, _loss_free),
    _alternative(
        "sparse transport", Group.OWN, SparsityConstrainedTransport, num_selected=1, gate="softmax", max_iterations=30
    ),
    Arm("hash", Group.OWN, HashRouting.objective, _hash),
    _alternative("DenseMixer", Group.OWN, DenseMixer),
    _alternative("dense mixture", Group.DENSE, DenseMixture, limited=False),
    _alternative("SMEAR", Group.DENSE, SMEAR, limited=False),
    _alternative("Soft MoE", Group.DENSE, SoftMoE, limited=False, serves_all=False),
)

#: all arms by name
ARMS = {arm.name: arm for arm in _ALL}

#: the estimators of the router objective and their twins, which the quick study runs
CORE = tuple(
    name
    for name, arm in ARMS.items()
    if arm.group in (Group.ROUTER, Group.TWIN) and name not in ("rl-r", "gumbel-softmax")
)
