"""A router that sees something else than the experts, and rules that serve in a Pyro model."""

import pyro
import pytest
import torch
from torch import Tensor, nn

from prob_moe.distributions import IndependentRouting
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.rules import Switch


class Looked(nn.Module):
    """A router that is a function of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table(tokens)


def made(assignment: object) -> tuple[ExpertLayer, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = ExpertLayer(Looked(), BatchedExperts(3, 4, 6, 4), assignment, name="z").double()
    return layer, torch.randn(2, 7, 4, dtype=torch.float64), torch.randint(5, (2, 7))


def test_the_router_sees_what_is_given_and_the_experts_see_x() -> None:
    layer, x, tokens = made(IndependentRouting)
    served = layer.eval()(x, router_input=tokens)
    favourites = layer.router.table.weight[tokens].argmax(-1)
    torch.testing.assert_close(served, layer.experts(x, favourites))
    with record_routing() as routed:
        layer.train()(x, router_input=tokens)
    routed.surrogate(torch.ones(2, 7, dtype=torch.float64)).sum().backward()
    asked = tokens.flatten().unique()
    assert layer.router.table.weight.grad.abs().sum(-1).nonzero().flatten().tolist() == asked.tolist()
    with pytest.raises(ValueError, match=r"router must return logits of shape .* with n = 7"):
        layer(x, router_input=tokens[:, :3])


def test_a_rule_serves_in_a_pyro_model_too() -> None:
    layer, x, tokens = made(Switch(capacity=1))
    outside = layer.eval()(x, router_input=tokens)
    with pyro.poutine.trace() as trace, pyro.plate("batch", 2, dim=-2):
        inside = layer(x, router_input=tokens)
    torch.testing.assert_close(inside, outside)
    assert (inside != 0).any(-1).all()
    assert "z_loss" in trace.trace.nodes
    with pyro.poutine.trace(), pyro.plate("batch", 2, dim=-2):
        dropped = layer.train()(x, router_input=tokens)
    assert ((dropped == 0).all(-1)).any()
