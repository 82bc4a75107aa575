"""The alternatives: one output by a layer that routes by a rule."""

from collections.abc import Callable

from pyro.distributions import TorchDistribution
from torch import Tensor

from inference.study.learners.base import Learner
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.mixture import MixtureOfExperts
from prob_moe.rules import RoutingRule, load_balancing_loss, top_choices


class GatedLearner(Learner):
    """
    One of the alternatives: the likelihood of the single output of a layer that routes by a rule.

    :param rule: its training mode trains, its evaluation mode serves, without a limit on the loads.
    :param load_balancing: weight of Switch's load-balancing loss on its logits; 0 where ``rule`` pays its own.
    :param identity: of datapoints, (*batch, n, d) -> long (*batch, n), where the rule asks for it.
    """

    identity: Callable[[Tensor], Tensor] | None = None
    #: whether the router's logits say who serves
    by_router = True

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
        if carry is not None or not self.by_router:  # it is not the router alone that decides
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
