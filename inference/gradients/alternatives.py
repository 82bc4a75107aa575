"""The alternatives of ``prob_moe.rules`` among the estimators, each against the objective that it can be held to."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from inference.gradients.estimators import Baseline, GradientEstimator, Loss, Objective, exact_router_gradient
from inference.gradients.problem import Problem, exact_gradient, gated_objective, likelihood, parameters
from prob_moe import rules
from prob_moe.mixture import MixtureOfExperts

Make = Callable[[Problem], rules.RoutingRule]

#: of central differences, in units of a parameter; a jump shows when two steps disagree
STEPS = (1e-5, 1e-6)


def alternatives() -> list[GradientEstimator]:
    """
    What is random is compared with the stochastic objective that it samples, and what is deterministic with its own
    model; Switch with both, because it is used as if it sampled. Auxiliary losses are left out. Drops count: a dropped
    datapoint has output 0, in the deterministic models as in what is compared with the gated objective, which has no
    capacity.
    """
    switch = _limited(rules.Switch)
    return [
        _alternative("Switch", switch, Objective.GATED, deterministic=True),
        _alternative("sampled gate", _limited(rules.SampledGate), Objective.GATED),
        # Inside the authors' window of 0.1 there is mostly one expert, hence no gradient.
        _alternative("SparseMixer v1, no window", _limited(rules.SparseMixer, epsilon=math.inf), Objective.GATED),
        _alternative("SparseMixer v2, no window", _limited(rules.SparseMixerV2, epsilon=math.inf), Objective.GATED),
        _alternative("Gumbel-softmax", _limited(rules.GumbelSoftmax), Objective.ROUTER),
        _alternative("DenseMixer", _limited(rules.DenseMixer), Objective.OWN, deterministic=True, biased=True),
        *(
            _alternative(label, make, Objective.OWN, deterministic=True, biased=False)
            for label, make in {
                "Switch": switch,
                "BASE": _limited(rules.BASELayer),
                "S-BASE": _limited(rules.SinkhornBASE),
                "expert choice": _limited(rules.ExpertChoice),
                "σ-MoE, top 2": _limited(rules.SigmaMoE),
                "sparse transport, top 2": _limited(rules.SparsityConstrainedTransport),
                # A bias that moves would change the model between draws.
                "loss-free bias": lambda p: rules.LossFreeBias(
                    p.setting.k, rate=0.0, capacity_factor=p.setting.capacity_factor
                ),
                "hash": _limited(rules.HashRouting),
                "SMEAR": lambda problem: rules.SMEAR(),
                "Soft MoE": lambda problem: rules.SoftMoE(),
                "dense mixture": lambda problem: rules.DenseMixture(),
            }.items()
        ),
    ]


def _limited(kind: Callable[..., rules.RoutingRule], **options: Any) -> Make:
    return lambda problem: kind(capacity_factor=problem.setting.capacity_factor, **options)


def _alternative(
    label: str, make: Make, objective: Objective, *, deterministic: bool = False, biased: bool = True
) -> GradientEstimator:
    def loss(problem: Problem, mixture: MixtureOfExperts, copies: int) -> Loss:
        x, y = problem.data(copies)
        return partial(rule_loss, make(problem), mixture, x, y)

    def exact(problem: Problem) -> list[Tensor] | None:
        if objective is Objective.GATED:
            return exact_gradient(problem, gated_objective)
        return exact_router_gradient(problem) if objective is Objective.ROUTER else own_gradient(problem, make)

    return GradientEstimator(label, Baseline.ABSENT, objective, loss, exact, deterministic=deterministic, biased=biased)


def rule_loss(rule: rules.RoutingRule, mixture: MixtureOfExperts, x: Tensor, y: Tensor) -> Tensor:
    """:returns: minus the log-likelihood of what the rule makes of x, summed over all copies, nats."""
    return -_log_likelihood(rule, mixture, x, y).sum()


def own_gradient(problem: Problem, make: Make) -> list[Tensor] | None:
    """
    By central differences of the forward pass alone.

    :param make: of a deterministic rule.
    :returns: gradients with respect to :func:`~inference.gradients.problem.parameters`, or None where the output jumps.
    """
    wide, narrow = (_central_differences(problem, make, step) for step in STEPS)
    return wide if all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(wide, narrow, strict=True)) else None


def _central_differences(problem: Problem, make: Make, step: float) -> list[Tensor]:
    """Every copy of the problem has one parameter moved, up in the first half and down in the second."""
    shapes = [parameter.shape for parameter in parameters(problem.mixture())]
    sizes = [shape.numel() for shape in shapes]
    copies = 2 * sum(sizes)
    mixture = problem.mixture(copies)
    shifts = step * torch.cat([torch.eye(sum(sizes), dtype=torch.float64) * sign for sign in (1, -1)])
    with torch.no_grad():
        for parameter, shift in zip(parameters(mixture), shifts.split(sizes, -1), strict=True):
            parameter.add_(shift.view_as(parameter))
        up, down = _log_likelihood(make(problem), mixture, *problem.data(copies)).chunk(2)
    slopes = ((up - down) / (2 * step)).split(sizes)
    return [slope.view(shape) for slope, shape in zip(slopes, shapes, strict=True)]


def _log_likelihood(rule: rules.RoutingRule, mixture: MixtureOfExperts, x: Tensor, y: Tensor) -> Tensor:
    """Summed over the datapoints of every copy, (copies,)."""
    logits = mixture.router(x)
    # The hash needs to know who a datapoint is.
    known = {"identity": torch.arange(x.shape[-2])} if isinstance(rule, rules.HashRouting) else {}
    out = rule(logits, **known).output(mixture.experts, x)
    return likelihood(out).log_prob(y).sum(-1)
