"""The estimators that are compared: each gives a loss whose gradient is one draw for every copy of the problem."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro
import torch
from torch import Tensor

from inference.gradients.problem import (
    Problem,
    Procedure,
    exact_balanced_gradient,
    exact_gradient,
    exact_mixture_gradient,
    mixture_capacity,
    router_objective,
)
from inference.registry import Objective
from inference.registry.builtin import REGISTRY, label
from inference.registry.names import spelling
from prob_moe.distributions import DependentRounding
from prob_moe.estimators import Baseline, Predicted, TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.mixture import MixtureOfExperts

#: minus the objective, summed over copies and datapoints; every call draws anew
Loss = Callable[[], Tensor]


#: E[f_i], which a learned baseline tends to; known to this report alone
EXPECTED_COST = "expected-cost"
#: there is no score function that could have a baseline
NO_SCORE = ""


def no_weights(problem: Problem) -> float:
    """The Pareto shape of weights that are all 1."""
    return -math.inf


def pareto_shape(procedure: Procedure) -> Callable[[Problem], float | None]:
    """Of a procedure's importance weights on a problem, by their law."""

    def law(problem: Problem) -> float | None:
        logits = problem.x.new_zeros(problem.setting.n, problem.setting.k)
        return procedure(logits, capacity=problem.setting.capacity).weight_pareto_k

    return law


@dataclass(frozen=True)
class GradientEstimator:
    """
    :param label: how tables and pictures call it; its name is that, as one types it.
    :param baseline: what is subtracted from the cost.
    :param objective: what it claims, or, of a biased twin, what it means, to be the gradient of.
    :param loss: from a problem, its stacked copies and their number to the loss.
    :param exact: the exact gradient of that objective, or None where it cannot be had.
    :param particles: draws of the assignment behind one gradient.
    :param warm_up: steps before the first gradient, for baselines that remember.
    :param deterministic: whether all draws are equal.
    :param biased: whether it is known to be biased for its objective.
    :param weight_pareto_k: from a problem to the Pareto shape of the importance weights, by their law; None if unknown.
    """

    label: str
    baseline: str
    objective: Objective
    loss: Callable[[Problem, MixtureOfExperts, int], Loss]
    exact: Callable[[Problem], list[Tensor] | None]
    particles: int = 1
    warm_up: int = 0
    deterministic: bool = False
    biased: bool = False
    weight_pareto_k: Callable[[Problem], float | None] = no_weights

    @property
    def name(self) -> str:
        return spelling(self.label)


# The router objective ------------------------------------------------------------------------------------------------


def routing_estimator(
    name: str, procedure: Procedure, baseline: str, *, weighted: bool = True, biased: bool | None = None
) -> GradientEstimator:
    """An estimator of the router objective through :class:`~prob_moe.estimators.TraceRouting_ELBO`."""
    return GradientEstimator(
        label=label(name) if weighted else f"{label(name)}, unweighted",
        baseline=baseline,
        objective=Objective.ROUTER,
        loss=partial(_loss, partial(TraceRouting_ELBO, weighted=weighted), procedure, baseline),
        exact=exact_router_gradient,
        particles=_particles(baseline),
        warm_up=_warm_up(baseline),
        biased=not weighted if biased is None else biased,
        weight_pareto_k=pareto_shape(procedure) if weighted else no_weights,
    )


#: the mean of so many steps stands for that of a long run
WARM_UP = 10


def exact_router_gradient(problem: Problem) -> list[Tensor]:
    return exact_gradient(problem, router_objective)


def _baseline(name: str) -> Baseline:
    baseline = REGISTRY.baselines[name].make()
    assert isinstance(baseline, Baseline)
    return baseline


def _expected_cost(problem: Problem) -> Baseline:
    with torch.no_grad():
        mixture = problem.mixture()
        p, f = mixture.router(problem.x).softmax(-1), mixture.log_likelihoods(problem.x, problem.y)
    return Predicted((p * f).sum(-1))


# The balanced objective ----------------------------------------------------------------------------------------------


def balanced_estimator(name: str, procedure: Procedure, baseline: str) -> GradientEstimator:
    """An estimator of the balanced objective through :class:`~prob_moe.estimators.TraceBalanced_ELBO`."""
    return GradientEstimator(
        label=f"{label(name)}, balanced",
        baseline=baseline,
        objective=Objective.BALANCED,
        loss=partial(_loss, TraceBalanced_ELBO, procedure, baseline),
        exact=lambda problem: exact_balanced_gradient(problem, procedure),
        particles=_particles(baseline),
        warm_up=_warm_up(baseline),
    )


def _particles(baseline: str) -> int:
    """Where a baseline compares particles, two of them cost two draws; variances are compared at equal cost."""
    return 2 if baseline in REGISTRY.baselines and REGISTRY.baselines[baseline].needs_particles else 1


def _warm_up(baseline: str) -> int:
    """A baseline that remembers has to see some steps first."""
    remembers = baseline != EXPECTED_COST and type(_baseline(baseline)).update is not Baseline.update
    return WARM_UP if remembers else 0


def _loss(
    kind: Callable[..., TraceRouting_ELBO | TraceBalanced_ELBO | TraceMixture_ELBO],
    procedure: Procedure,
    baseline: str,
    problem: Problem,
    mixture: MixtureOfExperts,
    copies: int,
) -> Loss:
    mixture.assignment = procedure
    if baseline == NO_SCORE:
        mixture.baseline = None
    else:
        mixture.baseline = _expected_cost(problem) if baseline == EXPECTED_COST else _baseline(baseline)
    x, y = problem.data(copies)

    def model() -> None:
        with pyro.plate("copies", copies, dim=-2):
            mixture(x, y)

    particles = _particles(baseline)
    elbo = kind(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=2)
    return partial(elbo.differentiable_loss, model, None)


# Several experts per datapoint ---------------------------------------------------------------------------------------

#: experts of every datapoint
SELECTED = 2


def pair_estimator(name: str, procedure: Procedure) -> GradientEstimator:
    """The router objective from several experts per datapoint, its score part from pairs of them: no baseline."""
    return GradientEstimator(
        label=f"{label(name)}, pairs",
        baseline=NO_SCORE,
        objective=Objective.ROUTER,
        loss=partial(_loss_of_several, TraceRouting_ELBO, procedure),
        exact=exact_router_gradient,
        weight_pareto_k=pareto_shape(procedure),
    )


def _loss_of_several(
    kind: Callable[..., TraceRouting_ELBO | TraceMixture_ELBO],
    procedure: Procedure,
    problem: Problem,
    mixture: MixtureOfExperts,
    copies: int,
) -> Loss:
    mixture.num_selected = SELECTED
    mixture.capacity = mixture_capacity(problem)
    return _loss(kind, procedure, NO_SCORE, problem, mixture, copies)


def mixture_estimator(name: str, procedure: Procedure) -> GradientEstimator:
    """An estimator of the mixture bound through :class:`~prob_moe.estimators.TraceMixture_ELBO`: no score function."""
    several = partial(procedure, num_selected=SELECTED)
    return GradientEstimator(
        label=f"{label(name)}, mixture bound",
        baseline=NO_SCORE,
        objective=Objective.MIXTURE,
        loss=partial(_loss_of_several, TraceMixture_ELBO, procedure),
        exact=lambda problem: exact_mixture_gradient(problem, several),
        weight_pareto_k=pareto_shape(procedure),
    )


# All of them ---------------------------------------------------------------------------------------------------------

_OVERFLOWING = "dependent rounding, router marginals"
#: dependent rounding of the router's own marginals, their overflow skipped
ROUTER_MARGINALS = partial(DependentRounding, marginals="router")


def estimators() -> list[GradientEstimator]:
    """
    Every procedure with every baseline, weighted and not; the balanced objective; the mixture bound. Independent
    routing with the expected cost is REINFORCE with a learned baseline (RL-R of Clark et al., 2022) once that has
    converged.
    """
    # A network would have to be trained first; the expected cost is what it would learn.
    baselines = [name for name, entry in REGISTRY.baselines.items() if not entry.network]
    of_one_particle = [name for name in baselines if not REGISTRY.baselines[name].needs_particles]
    procedures = REGISTRY.procedures
    rows = [
        routing_estimator(name, entry.make, baseline)
        for name, entry in procedures.items()
        for baseline in (*baselines, EXPECTED_COST)
    ]
    rows += [routing_estimator(spelling(_OVERFLOWING), ROUTER_MARGINALS, baseline) for baseline in of_one_particle]
    weighted = {name: entry for name, entry in procedures.items() if entry.weighted}
    rows += [
        routing_estimator(name, entry.make, baseline, weighted=False)
        for name, entry in weighted.items()
        for baseline in baselines
    ]
    rows += [
        balanced_estimator(name, entry.make, baseline)
        for name, entry in weighted.items()
        if entry.has_law
        for baseline in of_one_particle
    ]
    several = {name: entry for name, entry in procedures.items() if entry.takes_several}
    # What has no law does not know its pairs.
    rows += [pair_estimator(name, entry.make) for name, entry in several.items() if entry.has_law]
    rows += [mixture_estimator(name, entry.make) for name, entry in several.items()]
    return rows
