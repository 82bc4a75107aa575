"""Every expert on every datapoint: exact gradients, and EM."""

from torch import Tensor

from inference.study.learners.base import MixtureLearner
from prob_moe.mixture import MixtureOfExperts


class ExactGradient(MixtureLearner):
    """The router objective itself, from every expert on every datapoint."""

    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.mixture.router_objective(x, y).sum() / y.shape[-1]


class ExactMarginal(MixtureLearner):
    """The mixture's own likelihood, from every expert on every datapoint."""

    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.mixture.marginal_log_likelihood(x, y).mean(-1).sum()


class ExpectationMaximisation(MixtureLearner):
    """
    The mixture's own likelihood by expectation and maximisation (Jordan & Jacobs 1994): responsibilities are held for
    some steps on the expected complete log-likelihood, or for as long as a minibatch lasts.

    :param hold: steps.
    """

    def __init__(self, mixture: MixtureOfExperts, load_balancing: float = 0.0, hold: int = 10) -> None:
        super().__init__(mixture, load_balancing)
        self.hold = hold
        self.num_steps = 0
        self.held: tuple[Tensor, Tensor] | None = None

    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        joint = self.mixture.router(x).log_softmax(-1) + self.mixture.log_likelihoods(x, y)
        if self.held is None or self.held[0] is not x or self.num_steps % self.hold == 0:
            self.held = x, joint.detach().softmax(-1)
        self.num_steps += 1
        return -(self.held[1] * joint).sum(-1).mean(-1).sum()
