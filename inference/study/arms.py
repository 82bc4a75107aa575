"""The arms: every way to train, with the objective that it aims at. Procedures and rules are those of the registry."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, nn

from inference.registry import Objective, ProcedureEntry, RuleEntry, RuleSetting
from inference.registry.builtin import REGISTRY
from inference.registry.entries import asks_for_identity
from inference.registry.names import spelling
from inference.study.fixed_experts import FixedExperts
from inference.study.learners import (
    ExactGradient,
    ExactMarginal,
    ExpectationMaximisation,
    GatedLearner,
    ImportanceWeighted,
    Learner,
    SampledObjective,
    StraightThroughLearner,
)
from inference.study.problems import Problem
from prob_moe.distributions import AssignmentDistribution, DependentRounding, IndependentRouting
from prob_moe.estimators import LeaveOneOut, TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO

Elbo = TraceRouting_ELBO | TraceBalanced_ELBO


class Group(StrEnum):
    """What an arm aims at, in the order of tables and pictures."""

    ROUTER = "router objective, unbiased"
    TWIN = "router objective, biased"
    BALANCED = "balanced objective, unbiased"
    MARGINAL = "marginal likelihood, all experts"
    MIXTURE = "mixture bound, two experts"
    GATED = "gated objective, biased"
    OWN = "sparse, deterministic"
    DENSE = "dense, deterministic"
    FIXED = "routing not learnt"


@dataclass(frozen=True)
class Arm:
    """
    One way to train.

    :param label: how tables and pictures call it; its name is that, as one types it.
    :param objective: what its gradient is exact for, or aims at.
    :param build: from a problem, whose mixture it may keep, to a learner.
    :param origin: the plugin that it is of.
    :param needs_oracle: whether it is for tasks only where somebody knows the right experts.
    """

    label: str
    group: Group
    objective: str
    build: Callable[[Problem], Learner]
    origin: str = ""
    needs_oracle: bool = False

    @property
    def name(self) -> str:
        return spelling(self.label)


def all_arms() -> dict[str, Arm]:
    """:returns: all arms by name, group by group."""
    found = [
        *_of_the_router_objective(),
        *_of_the_likelihood(),
        *(arm for entry in REGISTRY.procedures.values() for arm in _of_procedure(entry)),
        *(_of_rule(entry) for entry in REGISTRY.rules.values() if "study" in entry.commands),
        *_of_fixed_experts(),
    ]
    order = list(Group)
    return {arm.name: arm for arm in sorted(found, key=lambda arm: order.index(arm.group))}


#: what the quick study leaves out on two lines: what pays for a network, and what is level with another arm there
LONGER = (
    "rl-r",
    "gumbel-softmax",
    "dependent-rounding-unweighted",
    "independent-leave-one-out",
    "independent-pairs",
    "independent-mixture-bound",
    "skip-mixture-bound",
    "dependent-rounding-guided-bound",
    "unlimited-rounding-mixture-bound",
    "iwae",
)

#: what the pieces of a line compare: objectives, and ways to estimate them
PIECES = (
    "exact-gradient",
    "independent-leave-one-out",
    "independent-pairs",
    "exact-marginal",
    "em",
    "iwae",
    "independent-mixture-bound",
    "skip-mixture-bound",
    "dependent-rounding-mixture-bound",
    "dependent-rounding-guided-bound",
    "unlimited-rounding-mixture-bound",
    "switch",
    "top-2-gates",
)
#: and in short
FEW_PIECES = (
    "exact-gradient",
    "independent-leave-one-out",
    "exact-marginal",
    "dependent-rounding-mixture-bound",
    "switch",
)


def core() -> tuple[str, ...]:
    """:returns: estimators of the router objective, their twins and one bound, which the quick study runs."""
    groups = (Group.ROUTER, Group.TWIN, Group.MIXTURE)
    return tuple(name for name, arm in all_arms().items() if arm.group in groups and name not in LONGER)


_R = "router objective R"
_B = "balanced objective B of its procedure"
_M = "mixture bound M of its procedure"
_UNLIMITED = "mixture bound M of minimum-variance marginals, without a limit on the loads"
_GUIDED = "mixture bound M, experts selected by a guide that knows y, trained along (wake-φ)"


def _of_the_router_objective() -> Iterator[Arm]:
    yield Arm("exact gradient", Group.ROUTER, _R, _exact)
    yield Arm("RL-R", Group.ROUTER, _R, _learned_baseline)
    yield Arm("independent, leave-one-out", Group.ROUTER, _R, _two_particles)
    yield Arm("independent, pairs", Group.ROUTER, _R, _pairs)


def _of_the_likelihood() -> Iterator[Arm]:
    log_likelihood = "log-likelihood of the mixture"
    yield Arm("exact marginal", Group.MARGINAL, log_likelihood, lambda p: ExactMarginal(p.mixture, p.load_balancing))
    yield Arm("EM", Group.MARGINAL, log_likelihood, lambda p: ExpectationMaximisation(p.mixture, p.load_balancing))
    iwae = "importance-weighted bound, two independent experts"
    yield Arm("IWAE", Group.MIXTURE, iwae, lambda p: ImportanceWeighted(p.mixture, p.load_balancing))


def _of_fixed_experts() -> Iterator[Arm]:
    likelihood = "likelihood of one expert, z fixed"
    yield Arm("oracle", Group.FIXED, likelihood, _oracle, needs_oracle=True)
    yield Arm("frozen router", Group.FIXED, likelihood, _frozen)
    yield Arm("one expert", Group.FIXED, likelihood, lambda p: FixedExperts(p.mixture, _first))


def _oracle(problem: Problem) -> Learner:
    if problem.oracle is None:
        raise ValueError("the arm 'oracle' needs a task where somebody knows the right experts")
    return FixedExperts(problem.mixture, problem.oracle)


def _frozen(problem: Problem) -> Learner:
    return FixedExperts(problem.mixture, lambda x: problem.mixture.router(x).argmax(-1))


def _first(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:-1], dtype=torch.long, device=x.device)


def _exact(problem: Problem) -> Learner:
    return ExactGradient(problem.mixture, problem.load_balancing)


def _learned_baseline(problem: Problem) -> Learner:
    problem.mixture.baseline = problem.cost_baseline()
    elbo = TraceRouting_ELBO()
    return SampledObjective(problem.mixture, IndependentRouting, elbo, problem.load_balancing)


def _two_particles(problem: Problem) -> Learner:
    problem.mixture.baseline = LeaveOneOut()
    elbo = TraceRouting_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=problem.train[1].dim())
    return SampledObjective(problem.mixture, IndependentRouting, elbo, problem.load_balancing)


def _pairs(problem: Problem) -> Learner:
    return _of_two(problem, IndependentRouting, TraceRouting_ELBO())


def _of_procedure(entry: ProcedureEntry) -> Iterator[Arm]:
    def arm(variant: str, group: Group, objective: str, elbo: Callable[[], Elbo]) -> Arm:
        label = f"{entry.label}, {variant}" if variant else entry.label
        return Arm(label, group, objective, partial(_sampled, entry=entry, elbo=elbo), entry.origin)

    yield arm("", Group.ROUTER, _R, TraceRouting_ELBO)
    if entry.weighted:
        twin = f"none: unweighted twin of {entry.label}"
        yield arm("unweighted", Group.TWIN, twin, partial(TraceRouting_ELBO, weighted=False))
        if entry.has_law:
            yield arm("balanced", Group.BALANCED, _B, TraceBalanced_ELBO)
    if entry.takes_several:
        build = partial(_mixture_bound, entry=entry)
        yield Arm(f"{entry.label}, mixture bound", Group.MIXTURE, _M, build, entry.origin)
        if entry.make is DependentRounding:
            guided = partial(_mixture_bound, entry=entry, guided=True)
            yield Arm(f"{entry.label}, guided bound", Group.MIXTURE, _GUIDED, guided, entry.origin)
            unlimited = partial(_mixture_bound, entry=entry, unlimited=True)
            yield Arm("unlimited rounding, mixture bound", Group.MIXTURE, _UNLIMITED, unlimited, entry.origin)


def _mixture_bound(problem: Problem, entry: ProcedureEntry, guided: bool = False, unlimited: bool = False) -> Learner:
    if unlimited:
        problem.mixture.capacity_factor = None
    return _of_two(problem, entry.make, TraceMixture_ELBO(), problem.posterior() if guided else None)


def _of_two(
    problem: Problem,
    assignment: Callable[..., AssignmentDistribution],
    elbo: TraceRouting_ELBO | TraceMixture_ELBO,
    posterior: nn.Module | None = None,
) -> Learner:
    problem.mixture.num_selected = 2
    problem.mixture.baseline = None  # neither needs one
    return SampledObjective(problem.mixture, assignment, elbo, problem.load_balancing, posterior)


def _sampled(problem: Problem, entry: ProcedureEntry, elbo: Callable[[], Elbo]) -> Learner:
    return SampledObjective(problem.mixture, entry.make, elbo(), problem.load_balancing)


def _of_rule(entry: RuleEntry) -> Arm:
    return Arm(entry.label, _group_of(entry), entry.words, partial(_ruled, entry=entry), entry.origin)


def _group_of(entry: RuleEntry) -> Group:
    if entry.dense:
        return Group.DENSE
    if Objective.OWN in entry.objectives:
        return Group.OWN
    return Group.GATED if Objective.GATED in entry.objectives else Group.TWIN


def _ruled(problem: Problem, entry: RuleEntry) -> Learner:
    mixture = problem.mixture
    experts = mixture.experts
    assert mixture.capacity_factor is not None
    setting = RuleSetting(
        experts.num_experts,
        mixture.capacity_factor,
        problem.load_balancing,
        tuple(experts.batch_shape),
        same_features=experts.in_features == experts.out_features,
    )
    # What does not balance itself pays Switch's loss.
    weight = problem.load_balancing if entry.balancing is None else 0.0
    # The code of Switch Transformers serves with twice the capacity; here that is no limit.
    kind = StraightThroughLearner if Objective.ROUTER in entry.objectives else GatedLearner
    rule = entry.build(setting)
    learner = kind(mixture, rule, load_balancing=weight)
    if asks_for_identity(rule):
        learner.identity = problem.identity
    return learner
