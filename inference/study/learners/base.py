"""A model together with the loss that an arm trains it on."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from prob_moe.mixture import MixtureOfExperts
from prob_moe.rules import load_balancing_loss


class Learner(nn.Module, ABC):
    """
    One or, with batch dimensions, many models that are trained side by side.

    Its predictive distribution is its own: what it would be judged by if it were the only one.

    :param mixture: router, experts and likelihood.
    :param load_balancing: weight of a load-balancing loss that comes on top of the arm's own loss.
    """

    def __init__(self, mixture: MixtureOfExperts, load_balancing: float = 0.0) -> None:
        super().__init__()
        self.mixture = mixture
        self.load_balancing = load_balancing

    @abstractmethod
    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """
        :param x: (*batch, n, d).
        :param y: (*batch, n).
        :returns: what is minimised, nats per datapoint, summed over models; a scalar.
        """

    def after_step(self) -> None:
        """What moves without a gradient, after every step of the optimiser."""

    @abstractmethod
    def log_predictive(self, x: Tensor, y: Tensor) -> Tensor:
        """:returns: log p(y_i | x_i) under the model's own predictive distribution, nats, (*batch, n)."""

    @abstractmethod
    def serve(self, x: Tensor) -> Tensor:
        """:returns: the outputs that would be served, (*batch, n, out)."""

    def served_by(self, x: Tensor, num_selected: int | None) -> TorchDistribution | None:
        """
        :param num_selected: how many experts serve a datapoint, its most probable ones; None for all.
        :returns: the law of y, batch shape (*batch, n); None for a model that serves in one way only.
        """
        return None


class MixtureLearner(Learner):
    """
    Routing is a random variable: it is summed out of the predictive, and the most probable expert serves.

    The load-balancing loss is the one on expected shares, :func:`~prob_moe.rules.load_balancing_loss`.
    """

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.minus_objective(x, y)
        if self.load_balancing:
            loss = loss + self.load_balancing * load_balancing_loss(self.mixture.router(x)).sum()
        return loss

    @abstractmethod
    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        """:returns: an estimate of minus the objective, nats per datapoint, summed over models; a scalar."""

    def log_predictive(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mixture.marginal_log_likelihood(x, y)

    def serve(self, x: Tensor) -> Tensor:
        return self.mixture.experts(x, self.mixture.router(x).argmax(-1), capacity=x.shape[-2])

    def served_by(self, x: Tensor, num_selected: int | None) -> TorchDistribution | None:
        return self.mixture.predict(x, num_selected=num_selected)

    def sampled(self, x: Tensor, y: Tensor) -> None:
        """The mixture as a Pyro model, in a plate of models, in units per datapoint."""
        with self.plates(y):
            self.mixture(x, y)

    @contextmanager
    def plates(self, y: Tensor) -> Iterator[None]:
        """Plates for the dimensions of a stack, and a scale for units per datapoint."""
        with ExitStack() as stack:
            for dim, size in enumerate(reversed(y.shape[:-1]), start=2):
                stack.enter_context(pyro.plate(f"models {dim}", size, dim=-dim))
            stack.enter_context(pyro.poutine.scale(scale=1 / y.shape[-1]))
            yield
