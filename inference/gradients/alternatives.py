"""The alternatives of ``prob_moe.rules`` among the estimators, each against the objective that it can be held to."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from inference.gradients.estimators import NO_SCORE, GradientEstimator, Loss, exact_router_gradient
from inference.gradients.problem import Problem, exact_gradient, gated_objective, likelihood, parameters
from inference.registry import Objective, RuleEntry, RuleSetting
from inference.registry.builtin import REGISTRY
from inference.registry.entries import asks_for_identity
from prob_moe.mixture import MixtureOfExperts
from prob_moe.rules import RoutingRule

Make = Callable[[Problem], RoutingRule]

#: of central differences, in units of a parameter; a jump shows when two steps disagree
STEPS = (1e-5, 1e-6)


def alternatives() -> list[GradientEstimator]:
    """
    What is random is compared with the stochastic objective that it samples, and what is deterministic with its own
    model; Switch with both, because it is used as if it sampled. Auxiliary losses are left out. Drops count: a dropped
    datapoint has output 0, in the deterministic models as in what is compared with the gated objective, which has no
    capacity.
    """
    rules = [entry for entry in REGISTRY.rules.values() if "gradients" in entry.commands]
    return [_alternative(entry, objective) for entry in rules for objective in entry.objectives]


def _alternative(entry: RuleEntry, objective: Objective) -> GradientEstimator:
    def make(problem: Problem) -> RoutingRule:
        return entry.build(RuleSetting(problem.setting.k, problem.setting.capacity_factor, learns=False))

    def loss(problem: Problem, mixture: MixtureOfExperts, copies: int) -> Loss:
        x, y = problem.data(copies)
        return partial(rule_loss, make(problem), mixture, x, y)

    def exact(problem: Problem) -> list[Tensor] | None:
        if objective is Objective.GATED:
            return exact_gradient(problem, gated_objective)
        return exact_router_gradient(problem) if objective is Objective.ROUTER else own_gradient(problem, make)

    return GradientEstimator(
        entry.label,
        NO_SCORE,
        objective,
        loss,
        exact,
        deterministic=Objective.OWN in entry.objectives,
        biased=objective is not Objective.OWN or not entry.exact,
    )


def rule_loss(rule: RoutingRule, mixture: MixtureOfExperts, x: Tensor, y: Tensor) -> Tensor:
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


def _log_likelihood(rule: RoutingRule, mixture: MixtureOfExperts, x: Tensor, y: Tensor) -> Tensor:
    """Summed over the datapoints of every copy, (copies,)."""
    logits = mixture.router(x)
    known = {"identity": torch.arange(x.shape[-2])} if asks_for_identity(rule) else {}
    out = rule(logits, **known).output(mixture.experts, x)
    return likelihood(out).log_prob(y).sum(-1)
