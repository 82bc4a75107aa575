"""A rule of one's own, in one file."""

from torch import Tensor

from inference.registry import Registry, RuleEntry
from prob_moe.rules import RoutingRule, SparseRouting, top_choices


class RootGate(RoutingRule):
    r"""
    Every datapoint goes to its most probable expert, gated by the root of that probability:

    .. math:: y_i = \sqrt{p_{ie}}\, f_e(x_i), \qquad e = \arg\max_j p_{ij}.

    **Objective:** its own deterministic model. **Exact for** L(y) almost everywhere. **Bias** for the gated objective,
    as :class:`~prob_moe.rules.Switch`.
    """

    objective = "deterministic L(sqrt(p_e) f_e) at e = argmax p"

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        logits, mask = self.prepare(logits, mask)
        choices = top_choices(logits, 1)
        gate, _ = self.gates(logits, choices)
        return self.to_experts(logits, mask, choices, gate)

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return (logits.log_softmax(-1) / 2).exp().mT.gather(-2, choices), None


def register(registry: Registry) -> None:
    registry.add(RuleEntry("root gate", RootGate))
