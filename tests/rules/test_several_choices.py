"""What the rules with several experts per datapoint have in common."""

import pytest
import torch

from prob_moe.rules import RoutingRule, SigmaMoE, TopGates


@pytest.mark.parametrize("rule", [SigmaMoE(), TopGates()], ids=lambda rule: type(rule).__name__)
def test_all_padding(rule: RoutingRule) -> None:
    logits = torch.full((5, 3), torch.nan, requires_grad=True)
    routing = rule(logits, mask=torch.zeros(5, dtype=torch.bool))
    assert (routing.assignment == -1).all()
    assert routing.loss == 0
    (gradient,) = torch.autograd.grad(routing.loss + routing.gate.sum(), logits)
    assert (gradient == 0).all()
