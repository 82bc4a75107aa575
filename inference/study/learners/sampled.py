"""The objectives of the library, by its estimators."""

from collections.abc import Callable

from torch import Tensor, nn

from inference.study.learners.base import MixtureLearner
from prob_moe.distributions import AssignmentDistribution
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.mixture import MixtureOfExperts


class SampledObjective(MixtureLearner):
    """
    The objective of an ELBO, whose gradient comes from draws of a procedure; its baseline is the mixture's.

    :param elbo: :class:`~prob_moe.estimators.TraceRouting_ELBO` for the router objective through importance weights
        (without them, its biased twin), :class:`~prob_moe.estimators.TraceBalanced_ELBO` for the balanced one,
        :class:`~prob_moe.estimators.TraceMixture_ELBO` for the bound of a mixture with ``num_selected``.
    :param posterior: a network (x, y) -> logits (*batch, n, k) for a guide that draws the experts; None: the router's.
    """

    def __init__(
        self,
        mixture: MixtureOfExperts,
        assignment: Callable[..., AssignmentDistribution],
        elbo: TraceRouting_ELBO | TraceBalanced_ELBO | TraceMixture_ELBO,
        load_balancing: float = 0.0,
        posterior: nn.Module | None = None,
    ) -> None:
        super().__init__(mixture, load_balancing)
        mixture.assignment = assignment
        self.elbo = elbo
        self.posterior = posterior

    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        return self.elbo.differentiable_loss(self.sampled, None if self.posterior is None else self.guide, x, y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Draws the experts by the mixture's procedure, from logits that know y."""
        assert self.posterior is not None
        with self.plates(y):
            self.mixture.site("assignment", x, self.posterior(x, y))
