"""A model together with the loss that an arm trains it on."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Categorical

from prob_moe.distributions import AssignmentDistribution
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.mixture import MixtureOfExperts
from prob_moe.rules import RoutingRule, load_balancing_loss, top_choices


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


class ExactGradient(MixtureLearner):
    """The router objective itself, from every expert on every datapoint."""

    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        return -self.mixture.router_objective(x, y).sum() / y.shape[-1]


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
        if self.held is None or self.held[0] is not x or self.num_steps % self.hold == 0:
            self.held = x, self.mixture.responsibilities(x, y).detach()
        self.num_steps += 1
        log_p = self.mixture.router(x).log_softmax(-1)
        complete = self.held[1] * (log_p + self.mixture.log_likelihoods(x, y))
        return -complete.sum(-1).mean(-1).sum()


class ImportanceWeighted(MixtureLearner):
    """
    The bound of some experts drawn independently (IWAE, Burda et al. 2016), with its score function and the others'
    bound as baseline (VIMCO, Mnih & Rezende 2016). No capacity.

    :param num_samples: experts of every datapoint, which may coincide.
    """

    def __init__(self, mixture: MixtureOfExperts, load_balancing: float = 0.0, num_samples: int = 2) -> None:
        super().__init__(mixture, load_balancing)
        self.num_samples = num_samples

    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        log_p = self.mixture.router(x).log_softmax(-1)
        drawn = Categorical(logits=log_p.detach()).sample((self.num_samples,)).movedim(0, -1)
        f = self.mixture.log_likelihoods(x, y).gather(-1, drawn)
        bound = f.logsumexp(-1) - math.log(self.num_samples)
        # The bound with one sample replaced by the geometric mean of the others.
        held = f.detach()
        others = (held.sum(-1, keepdim=True) - held) / (self.num_samples - 1)
        each = torch.eye(self.num_samples, dtype=torch.bool, device=x.device)
        replaced = torch.where(each, others.unsqueeze(-1), held.unsqueeze(-2)).logsumexp(-1)
        signal = bound.detach().unsqueeze(-1) - (replaced - math.log(self.num_samples))
        score = (signal * log_p.gather(-1, drawn)).sum(-1)
        return -(bound + score - score.detach()).mean(-1).sum()


class GatedLearner(Learner):
    """
    One of the alternatives: the likelihood of the single output of a layer that routes by a rule.

    :param rule: its training mode trains, its evaluation mode serves, without a limit on the loads.
    :param load_balancing: weight of Switch's load-balancing loss on its logits; 0 where ``rule`` pays its own.
    :param identity: of datapoints, (*batch, n, d) -> long (*batch, n), where the rule asks for it.
    """

    identity: Callable[[Tensor], Tensor] | None = None

    def __init__(self, mixture: MixtureOfExperts, rule: RoutingRule, *, load_balancing: float) -> None:
        super().__init__(mixture, load_balancing)
        self.layer = ExpertLayer(mixture.router, mixture.experts, rule)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        with record_routing() as routed:
            out = self._outputs(x)
        loss = routed.loss - self.mixture.likelihood(out).log_prob(y).mean(-1)
        if self.load_balancing:
            logits = self.mixture.router(x)
            loss = loss + self.load_balancing * load_balancing_loss(logits, logits.argmax(-1))
        return loss.sum()

    def after_step(self) -> None:
        self.layer.update()

    def log_predictive(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mixture.likelihood(self.serve(x)).log_prob(y)

    def serve(self, x: Tensor) -> Tensor:
        training = self.layer.training
        self.layer.eval()
        out = self._outputs(x)
        self.layer.train(training)
        return out

    def served_by(self, x: Tensor, num_selected: int | None) -> TorchDistribution | None:
        """The outputs of the most probable experts, with the gates that the rule gives to them."""
        rule, experts = self.layer.rule, self.mixture.experts
        assert rule is not None
        logits = self.mixture.router(x)
        choices = top_choices(logits, experts.num_experts if num_selected is None else num_selected)
        try:
            gates, carry = rule.gates(logits, choices)
        except NotImplementedError:
            return None
        if carry is not None or self.identity is not None:  # it is not the router alone that decides
            return None
        out = experts.dense(x)
        chosen = out.gather(-2, choices.mT.unsqueeze(-1).expand(*choices.mT.shape, out.shape[-1]))
        return self.mixture.likelihood((gates.mT.unsqueeze(-1) * chosen).sum(-2))

    def _outputs(self, x: Tensor) -> Tensor:
        options = {} if self.identity is None else {"identity": self.identity(x)}
        out: Tensor = self.layer(x, **options)
        return out


class StraightThroughLearner(GatedLearner):
    """An alternative without a gate: its model is the mixture, whose predictive sums routing out."""

    def log_predictive(self, x: Tensor, y: Tensor) -> Tensor:
        return self.mixture.marginal_log_likelihood(x, y)

    def served_by(self, x: Tensor, num_selected: int | None) -> TorchDistribution | None:
        return self.mixture.predict(x, num_selected=num_selected)
