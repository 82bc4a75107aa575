"""
Every distribution and every rule in a network of two layers, in plain torch, in Pyro under each ELBO that applies, and
compiled: one gradient. That it is the right one, tests/layer/test_gradients.py and test_several.py hold to enumeration
for distributions, tests/layer/test_layer.py to autograd of the documented formula for rules.
"""

import copy
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from torch import Tensor, nn

from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.rules import HashRouting, RoutingRule
from tests.compiler import needs_compiler
from tests.layer.test_layer import DISTRIBUTIONS, RULES, datapoints, experts_of

#: rules, distributions with one expert per datapoint, and sets combined by gates
ROUTINGS: dict[str, tuple[Any, dict[str, Any]]] = {name: (rule, {}) for name, rule in RULES.items()}
for name, distribution in DISTRIBUTIONS.items():
    ROUTINGS[name] = (distribution, {"capacity_factor": 1.0})
    if name != "GumbelMatching":
        ROUTINGS[f"{name}, m = 2"] = (distribution, {"capacity_factor": 1.0, "num_selected": 2, "combine": "gates"})
every_routing = pytest.mark.parametrize("routing", ROUTINGS)


class Network(nn.Module):
    """Two layers with residual connections."""

    def __init__(self, assignment: Any, options: dict[str, Any]) -> None:
        super().__init__()
        # A rule is a module, which each layer has for itself; of a class deepcopy makes no copy.
        routings = [copy.deepcopy(assignment) for _ in range(2)]
        self.layers = nn.ModuleList(ExpertLayer(None, experts_of(), routing, **options) for routing in routings)
        self.knows_identity = isinstance(assignment, HashRouting)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            known = {"identity": (x[..., 0].detach() * 1e3).long()} if self.knows_identity else {}
            x = x + layer(x, **known)
        return x


def network(routing: str) -> Network:
    return Network(*ROUTINGS[routing])


def objectives(routing: str) -> list[str]:
    """What can be estimated outside of Pyro."""
    assignment, options = ROUTINGS[routing]
    if isinstance(assignment, RoutingRule):
        return ["router", "balanced"]
    names = [] if "num_selected" in options else ["router"]
    return names if assignment is DISTRIBUTIONS["DependentRounding"] else [*names, "balanced"]


CASES = [(routing, objective) for routing in ROUTINGS for objective in objectives(routing)]
every_case = pytest.mark.parametrize(("routing", "objective"), CASES, ids=[f"{r}-{o}" for r, o in CASES])


def nll(out: Tensor, y: Tensor) -> Tensor:
    return -Normal(out.sum(-1), 1.0).log_prob(y)


def plain_gradients(net: nn.Module, x: Tensor, y: Tensor, objective: Any) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(4)
    with record_routing() as routed:
        losses = nll(net(x), y)
    auxiliary = (routed.loss * x.shape[-2]).sum()
    loss = routed.surrogate(losses if objective == "router" else losses.sum(-1), objective=objective).sum() + auxiliary
    return loss, gradients(loss, net)


def gradients(loss: Tensor, net: nn.Module) -> list[Tensor]:
    """Zero where there is none."""
    parameters = list(net.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@every_case
def test_plain_torch_and_pyro_have_one_gradient(routing: str, objective: str) -> None:
    net, x, y = network(routing), datapoints(2, 7), torch.randn(2, 7, dtype=torch.float64)
    loss, expected = plain_gradients(net, x, y, objective)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("batch", 2, dim=-2):
            out = net(x)
            with pyro.plate("data", 7):
                pyro.sample("y", Normal(out.sum(-1), 1.0), obs=y)

    def number(*_: Any) -> None:  # that a layer outside of Pyro takes before it draws
        torch.empty((), dtype=torch.long).random_()

    hooks = [layer.register_forward_pre_hook(number) for layer in net.layers]
    elbo = (TraceRouting_ELBO if objective == "router" else TraceBalanced_ELBO)(max_plate_nesting=2)
    # The check of a model's assumption, once per ELBO, draws by itself.
    with pyro.validation_enabled(False):
        torch.manual_seed(4)
        ours = elbo.differentiable_loss(model, None, x, y)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(ours, loss)
    for gradient, exact in zip(gradients(ours, net), expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-8, atol=1e-10)
    if not isinstance(ROUTINGS[routing][0], HashRouting):
        assert all(bool((g != 0).any()) for (n, _), g in zip(net.named_parameters(), expected) if "1.experts" in n)


@needs_compiler
@every_routing
def test_compiled_networks_equal_eager_ones(routing: str) -> None:
    net, x, y = network(routing), datapoints(2, 6), torch.randn(2, 6, dtype=torch.float64)
    compiled = torch.compile(net, backend="aot_eager")
    for objective in objectives(routing):
        (ours, got), (loss, expected) = (plain_gradients(each, x, y, objective) for each in (compiled, net))
        torch.testing.assert_close(ours, loss)
        for gradient, exact in zip(got, expected, strict=True):
            torch.testing.assert_close(gradient, exact)
