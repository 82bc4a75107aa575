"""Arms of the rules."""

from functools import partial

from inference.registry import Objective, RuleEntry, RuleSetting
from inference.registry.entries import asks_for_identity
from inference.study.arms.arm import Arm, Group
from inference.study.learners import GatedLearner, Learner, StraightThroughLearner
from inference.study.problems import Problem


def of_rule(entry: RuleEntry) -> Arm:
    return Arm(
        entry.label,
        _group_of(entry),
        entry.words,
        partial(_ruled, entry=entry),
        entry.origin,
        evaluations=entry.evaluations,
        looks_ahead=entry.looks_ahead,
    )


def _group_of(entry: RuleEntry) -> Group:
    if entry.fixed:
        return Group.FIXED
    if entry.dense:
        return Group.DENSE
    if Objective.OWN in entry.objectives:
        return Group.OWN
    return Group.GATED if Objective.GATED in entry.objectives else Group.TWIN


def _ruled(problem: Problem, entry: RuleEntry) -> Learner:
    mixture = problem.mixture
    experts = mixture.experts
    assert mixture.capacity_factor is not None
    # As a mixture with several experts per datapoint has it: a place for every choice, at balance.
    setting = RuleSetting(
        experts.num_experts,
        mixture.capacity_factor * (entry.evaluations if isinstance(entry.evaluations, int) else 1),
        problem.load_balancing,
        tuple(experts.batch_shape),
        same_features=experts.in_features == experts.out_features,
    )
    # What does not balance itself pays Switch's loss.
    weight = problem.load_balancing if entry.balancing is None and not entry.fixed else 0.0
    # The code of Switch Transformers serves with twice the capacity; here that is no limit.
    kind = StraightThroughLearner if Objective.ROUTER in entry.objectives else GatedLearner
    rule = entry.build(setting)
    learner = kind(mixture, rule, load_balancing=weight)
    learner.by_router = not entry.fixed
    if asks_for_identity(rule):
        learner.identity = problem.identity
    return learner
