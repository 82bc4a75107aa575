"""The estimators that are compared: each gives a loss whose gradient is one draw for every copy of the problem."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor

from inference.gradients.problem import (
    Problem,
    Procedure,
    exact_balanced_gradient,
    exact_gradient,
    router_objective,
)
from inference.names import spelling
from inference.procedures import PROCEDURES, label
from prob_moe.distributions import DependentRounding, IndependentRouting
from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO
from prob_moe.mixture import MixtureOfExperts

#: minus the objective, summed over copies and datapoints; every call draws anew
Loss = Callable[[], Tensor]


class Objective(StrEnum):
    """
    What an estimator's expected gradient is compared with; all are log-likelihoods, in nats.

    * router: sum_i E_{z_i ~ p_i}[f_i(z_i)].
    * balanced: E_{Z ~ procedure}[sum_i f_i(z_i)].
    * gated: sum_i E_{z_i ~ p_i}[L_i(p_{i z_i} f_{z_i}(x_i))], of outputs scaled by the gate, without capacity.
    * own: sum_i L_i(y_i), of the output y of the deterministic model that runs.
    """

    ROUTER = "router"
    BALANCED = "balanced"
    GATED = "gated"
    OWN = "own"


class Baseline(StrEnum):
    """What is subtracted from the cost."""

    NONE = "none"
    DECAYING = "decaying"
    LEAVE_ONE_OUT = "leave-one-out"
    #: E[f_i], which a learned baseline tends to
    VALUE = "expected-cost"
    #: there is no score function that could have one
    ABSENT = ""


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
    baseline: Baseline
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
    name: str, procedure: Procedure, baseline: Baseline, *, weighted: bool = True, biased: bool | None = None
) -> GradientEstimator:
    """An estimator of the router objective through :class:`~prob_moe.estimators.TraceRouting_ELBO`."""
    return GradientEstimator(
        label=label(name) if weighted else f"{label(name)}, unweighted",
        baseline=baseline,
        objective=Objective.ROUTER,
        loss=partial(_loss, partial(TraceRouting_ELBO, weighted=weighted), procedure, baseline),
        exact=exact_router_gradient,
        particles=_particles(baseline),
        warm_up=WARM_UP if baseline is Baseline.DECAYING else 0,
        biased=not weighted if biased is None else biased,
        weight_pareto_k=pareto_shape(procedure) if weighted else no_weights,
    )


#: the mean of so many steps stands for that of a long run
WARM_UP = 10


def exact_router_gradient(problem: Problem) -> list[Tensor]:
    return exact_gradient(problem, router_objective)


def _baseline_options(baseline: Baseline, problem: Problem) -> dict[str, Any] | None:
    match baseline:
        case Baseline.DECAYING:
            return {"use_decaying_avg_baseline": True}
        case Baseline.LEAVE_ONE_OUT:
            return {"use_leave_one_out_baseline": True}
        case Baseline.VALUE:
            with torch.no_grad():
                mixture = problem.mixture()
                p, f = mixture.router(problem.x).softmax(-1), mixture.log_likelihoods(problem.x, problem.y)
            return {"baseline_value": (p * f).sum(-1)}
        case _:
            return None


# The balanced objective ----------------------------------------------------------------------------------------------


def balanced_estimator(name: str, procedure: Procedure, baseline: Baseline) -> GradientEstimator:
    """An estimator of the balanced objective through :class:`~prob_moe.estimators.TraceBalanced_ELBO`."""
    return GradientEstimator(
        label=label(name),
        baseline=baseline,
        objective=Objective.BALANCED,
        loss=partial(_loss, TraceBalanced_ELBO, procedure, baseline),
        exact=lambda problem: exact_balanced_gradient(problem, procedure),
        particles=_particles(baseline),
        warm_up=WARM_UP if baseline is Baseline.DECAYING else 0,
    )


def _particles(baseline: Baseline) -> int:
    """Leave-one-out compares particles. Two of them cost two draws; variances are compared at equal cost."""
    return 2 if baseline is Baseline.LEAVE_ONE_OUT else 1


def _loss(
    kind: Callable[..., TraceRouting_ELBO | TraceBalanced_ELBO],
    procedure: Procedure,
    baseline: Baseline,
    problem: Problem,
    mixture: MixtureOfExperts,
    copies: int,
) -> Loss:
    mixture.assignment = procedure
    mixture.baseline = _baseline_options(baseline, problem)
    x, y = problem.data(copies)

    def model() -> None:
        with pyro.plate("copies", copies, dim=-2):
            mixture(x, y)

    particles = _particles(baseline)
    elbo = kind(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=2)
    return partial(elbo.differentiable_loss, model, None)


# All of them ---------------------------------------------------------------------------------------------------------

#: dependent rounding of the router's own marginals, their overflow skipped
ROUTER_MARGINALS = partial(DependentRounding, marginals="router")


def estimators() -> list[GradientEstimator]:
    """
    Every distribution with every baseline, weighted and not; the balanced objective. Independent routing with the
    expected cost is REINFORCE with a learned baseline (RL-R of Clark et al., 2022) once that has converged.
    """
    simple = (Baseline.NONE, Baseline.DECAYING, Baseline.LEAVE_ONE_OUT)
    rows = [
        routing_estimator(name, procedure, baseline)
        for name, procedure in PROCEDURES.items()
        for baseline in (*simple, Baseline.VALUE)
    ]
    rows += [routing_estimator("dependent-rounding-router-marginals", ROUTER_MARGINALS, b) for b in simple[:2]]
    for name, procedure in PROCEDURES.items():
        if procedure is not IndependentRouting:  # its weights are 1
            rows += [routing_estimator(name, procedure, b, weighted=False) for b in simple]
    for name in ("skip", "gumbel-matching"):
        rows += [balanced_estimator(f"{name}-balanced", PROCEDURES[name], b) for b in simple[:2]]
    return rows
