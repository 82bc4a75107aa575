"""Arms of the assignment procedures: under R, under B, as twins without weights, and under the mixture bound."""

from collections.abc import Callable, Iterator
from functools import partial

from inference.registry import ProcedureEntry
from inference.study.arms.arm import Arm, Group
from inference.study.arms.objectives import ROUTER_OBJECTIVE, of_two
from inference.study.learners import Learner, SampledObjective
from inference.study.problems import Problem
from prob_moe.distributions import DependentRounding
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO

Elbo = TraceRouting_ELBO | TraceBalanced_ELBO

_B = "balanced objective B of its procedure"
_M = "mixture bound M of its procedure"
_UNLIMITED = "mixture bound M of minimum-variance marginals, without a limit on the loads"
_GUIDED = "mixture bound M, experts selected by a guide that knows y, trained along (wake-φ)"


def of_procedure(entry: ProcedureEntry) -> Iterator[Arm]:
    def arm(variant: str, group: Group, objective: str, elbo: Callable[[], Elbo]) -> Arm:
        label = f"{entry.label}, {variant}" if variant else entry.label
        return Arm(label, group, objective, partial(_sampled, entry=entry, elbo=elbo), entry.origin)

    yield arm("", Group.ROUTER, ROUTER_OBJECTIVE, TraceRouting_ELBO)
    if entry.weighted:
        twin = f"none: unweighted twin of {entry.label}"
        yield arm("unweighted", Group.TWIN, twin, partial(TraceRouting_ELBO, weighted=False))
        if entry.has_law:
            yield arm("balanced", Group.BALANCED, _B, TraceBalanced_ELBO)
    if entry.takes_several:
        build = partial(_mixture_bound, entry=entry)
        yield Arm(f"{entry.label}, mixture bound", Group.MIXTURE, _M, build, entry.origin, evaluations=2)
        if entry.make is DependentRounding:
            guided = partial(_mixture_bound, entry=entry, guided=True)
            yield Arm(f"{entry.label}, guided bound", Group.MIXTURE, _GUIDED, guided, entry.origin, evaluations=2)
            unlimited = partial(_mixture_bound, entry=entry, unlimited=True)
            yield Arm(
                "unlimited rounding, mixture bound", Group.MIXTURE, _UNLIMITED, unlimited, entry.origin, evaluations=2
            )


def _mixture_bound(problem: Problem, entry: ProcedureEntry, guided: bool = False, unlimited: bool = False) -> Learner:
    if unlimited:
        problem.mixture.capacity_factor = None
    return of_two(problem, entry.make, TraceMixture_ELBO(), problem.posterior() if guided else None)


def _sampled(problem: Problem, entry: ProcedureEntry, elbo: Callable[[], Elbo]) -> Learner:
    return SampledObjective(problem.mixture, entry.make, elbo(), problem.load_balancing)
