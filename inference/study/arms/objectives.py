"""Arms of the router objective and of the likelihood that are of no procedure alone."""

from collections.abc import Callable, Iterator

from torch import nn

from inference.registry.entries import ALL_EXPERTS, Evaluations
from inference.study.arms.arm import Arm, Group
from inference.study.learners import (
    ExactGradient,
    ExactMarginal,
    ExpectationMaximisation,
    ImportanceWeighted,
    Learner,
    SampledObjective,
    SumAndSample,
    UnorderedSet,
)
from inference.study.problems import Problem
from prob_moe.distributions import AssignmentDistribution, IndependentRouting
from prob_moe.estimators import LeaveOneOut, TraceMixture_ELBO, TraceRouting_ELBO

ROUTER_OBJECTIVE = "router objective R"


def of_the_router_objective() -> Iterator[Arm]:
    def arm(label: str, build: Callable[[Problem], Learner], evaluations: Evaluations) -> Arm:
        return Arm(label, Group.ROUTER, ROUTER_OBJECTIVE, build, evaluations=evaluations)

    yield arm("exact gradient", lambda p: ExactGradient(p.mixture, p.load_balancing), ALL_EXPERTS)
    yield arm("RL-R", _learned_baseline, 1)
    yield arm("independent, leave-one-out", _two_particles, 2)
    yield arm("independent, pairs", _pairs, 2)
    yield arm("unordered set", lambda p: UnorderedSet(p.mixture, p.load_balancing), 2)
    yield arm("sum and sample", lambda p: SumAndSample(p.mixture, p.load_balancing), 2)


def of_the_likelihood() -> Iterator[Arm]:
    def arm(label: str, kind: type[ExactMarginal] | type[ExpectationMaximisation]) -> Arm:
        def build(problem: Problem) -> Learner:
            return kind(problem.mixture, problem.load_balancing)

        return Arm(label, Group.MARGINAL, "log-likelihood of the mixture", build, evaluations=ALL_EXPERTS)

    yield arm("exact marginal", ExactMarginal)
    yield arm("EM", ExpectationMaximisation)
    iwae = "importance-weighted bound, two independent experts"
    yield Arm("IWAE", Group.MIXTURE, iwae, lambda p: ImportanceWeighted(p.mixture, p.load_balancing), evaluations=2)


def _learned_baseline(problem: Problem) -> Learner:
    problem.mixture.baseline = problem.cost_baseline()
    elbo = TraceRouting_ELBO()
    return SampledObjective(problem.mixture, IndependentRouting, elbo, problem.load_balancing)


def _two_particles(problem: Problem) -> Learner:
    problem.mixture.baseline = LeaveOneOut()
    elbo = TraceRouting_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=problem.train[1].dim())
    return SampledObjective(problem.mixture, IndependentRouting, elbo, problem.load_balancing)


def _pairs(problem: Problem) -> Learner:
    return of_two(problem, IndependentRouting, TraceRouting_ELBO())


def of_two(
    problem: Problem,
    assignment: Callable[..., AssignmentDistribution],
    elbo: TraceRouting_ELBO | TraceMixture_ELBO,
    posterior: nn.Module | None = None,
) -> Learner:
    """Two distinct experts of every datapoint, by a procedure."""
    problem.mixture.num_selected = 2
    problem.mixture.baseline = None  # neither needs one
    return SampledObjective(problem.mixture, assignment, elbo, problem.load_balancing, posterior)
