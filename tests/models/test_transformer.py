"""Two transformer blocks of experts: one gradient in plain torch and in Pyro, and a step that moves all of it."""

from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from models.transformer import ExpertTransformerBlock
from prob_moe.distributions import CapacitySkip, GumbelMatching
from prob_moe.estimators import TraceBalanced_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer, record_routing

D, K = 4, 3


def network(assignment: Any, **options: Any) -> nn.Sequential:
    def block() -> ExpertTransformerBlock:
        layer = ExpertLayer(None, BatchedExperts(K, D, 8, D), assignment, capacity_factor=1.0, **options)
        return ExpertTransformerBlock(D, 2, layer)

    return nn.Sequential(block(), block(), nn.Linear(D, 1)).double()


@pytest.mark.parametrize(
    ("assignment", "options"),
    [(CapacitySkip, {}), (GumbelMatching, {}), (CapacitySkip, {"num_selected": 2, "combine": "gates"})],
)
def test_a_step_in_plain_torch_and_in_pyro(assignment: Any, options: dict[str, Any]) -> None:
    net = network(assignment, **options)
    x, y = torch.randn(2, 6, D, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("sequences", 2, dim=-2):
            out = net(x).squeeze(-1)
            with pyro.plate("tokens", 6, dim=-1):
                pyro.sample("y", Normal(out, 1.0), obs=y)

    torch.manual_seed(1)
    with record_routing() as routed:
        out = net(x).squeeze(-1)
    losses = -Normal(out, 1.0).log_prob(y).sum(-1)
    loss = routed.surrogate(losses, objective="balanced").sum()
    assert list(routed.record().layers) == ["0.experts", "1.experts"]
    torch.testing.assert_close(loss, losses.sum())
    values = {name: layer.value for name, layer in routed.record().layers.items() if layer.value is not None}

    def replayed(x: Tensor, y: Tensor) -> None:
        trace = pyro.poutine.Trace()
        for name, value in values.items():
            site = {"type": "sample", "name": name, "is_observed": False, "infer": {}}
            trace.add_node(name, value=value.unsqueeze(1), **site)
        pyro.poutine.replay(model, trace=trace)(x, y)

    parameters = list(net.parameters())
    ours = torch.autograd.grad(loss, parameters)
    assert all(bool((gradient != 0).any()) for gradient in ours)
    if assignment is CapacitySkip:
        elbo = TraceBalanced_ELBO(max_plate_nesting=2).differentiable_loss(replayed, None, x, y)
        for gradient, expected in zip(torch.autograd.grad(elbo, parameters), ours, strict=True):
            torch.testing.assert_close(gradient, expected)
    svi = pyro.infer.SVI(
        lambda x, y: (pyro.module("net", net), model(x, y))[1],
        lambda x, y: None,
        pyro.optim.Adam({"lr": 0.01}),
        TraceBalanced_ELBO(max_plate_nesting=2),
    )
    before = [parameter.detach().clone() for parameter in parameters]
    svi.step(x, y)
    assert not any(torch.equal(parameter, old) for parameter, old in zip(parameters, before, strict=True))
