"""Models whose routing is not learnt: what every way to learn it is measured against."""

from collections.abc import Callable

from pyro.distributions import TorchDistribution
from torch import Tensor

from inference.study.learners.base import Learner
from prob_moe.mixture import MixtureOfExperts


class FixedExperts(Learner):
    """
    Every datapoint has the same expert throughout; the experts learn the likelihood, the router nothing. No capacity.

    :param choose: from (*batch, n, d) to the expert of every datapoint, long (*batch, n).
    """

    def __init__(self, mixture: MixtureOfExperts, choose: Callable[[Tensor], Tensor]) -> None:
        super().__init__(mixture)
        mixture.router.requires_grad_(False)
        self.choose = choose

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.log_predictive(x, y).mean(-1).sum()

    def log_predictive(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mixture.likelihood(self.serve(x)).log_prob(y)

    def serve(self, x: Tensor) -> Tensor:
        return self.mixture.experts(x, self.choose(x))

    def served_by(self, x: Tensor, num_selected: int | None) -> TorchDistribution | None:
        return self.mixture.likelihood(self.serve(x)) if num_selected == 1 else None
