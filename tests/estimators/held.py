"""Procedures that draw a given value, so that an estimator's expectation is a sum over all draws."""

from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution
from prob_moe.distributions.choices import OwnChoices
from prob_moe.distributions.draw import Draw
from prob_moe.estimators.surrogate_elbo import SurrogateELBO


class Held:
    """
    A procedure as a model calls it, IndependentRouting or CapacitySkip with its options; the value that it will draw
    is set from outside.
    """

    def __init__(self, procedure: type[OwnChoices], **options: Any) -> None:
        held = self
        self.options = options

        class Law(procedure):  # type: ignore[misc,valid-type]
            def draw(self, sample_shape: torch.Size = torch.Size(), *, generator: Any = None) -> Draw:  # noqa: B008
                assert held.value is not None
                return self._chosen(held.value.clone())

        self.law = Law
        self.value: Tensor | None = None

    def __call__(self, logits: Tensor, **options: Any) -> AssignmentDistribution:
        made: AssignmentDistribution = self.law(logits, **{**options, **self.options})
        return made


def expectation(
    elbo: SurrogateELBO,
    model: Callable[[], None],
    guide: Callable[[], None] | None,
    leaves: list[Tensor],
    draws: Iterable[tuple[list[tuple[Held, Tensor]], list[str]]],
) -> list[Tensor]:
    """
    :param model: calls the held procedures.
    :param draws: for every joint draw, what each procedure shall draw, and the names of its sites.
    :returns: minus the expected loss, then the expected gradients of the objective.
    """
    totals: list[Tensor] = [torch.zeros((), dtype=torch.float64), *(torch.zeros_like(leaf) for leaf in leaves)]
    for held, names in draws:
        for procedure, value in held:
            procedure.value = value
        with torch.no_grad():
            trace = pyro.poutine.trace(model if guide is None else guide).get_trace()
            log_prob = sum(trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"]).sum() for name in names)
            probability = torch.as_tensor(log_prob).exp()
        if probability > 0:
            value = -elbo.differentiable_loss(model, guide)
            found = [value, *torch.autograd.grad(value, leaves, allow_unused=True)]
            for total, part in zip(totals, found):
                total += probability * (0.0 if part is None else part.detach())
    return totals
