"""
The one table of the layer: every distribution and every rule, in a network of two layers, in a plain torch loop, in
Pyro under each ELBO that applies, and compiled. One draw has one gradient in all of them. That this is the right one,
test_gradients.py and test_several.py hold to enumeration for distributions, and the last test here to autograd of the
documented formula for rules.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.layer import record_routing
from prob_moe.mixture import MixtureOfExperts
from prob_moe.rules import HashRouting, RandomRouting, RoutingRule
from tests.compiler import needs_compiler
from tests.layer.cases import DISTRIBUTIONS, RULES, datapoints, layer_of, options_for

Objective = Literal["router", "balanced", "mixture"]

#: by the recipe of TraceBalanced_ELBO's docstring
PYROS_OWN: list[type] = [Trace_ELBO, TraceGraph_ELBO]
#: what trains an objective in Pyro
ELBOS: dict[Objective, list[type]] = {
    "router": [TraceRouting_ELBO],
    "balanced": [TraceBalanced_ELBO, *PYROS_OWN],
    "mixture": [TraceMixture_ELBO],
}


@dataclass(frozen=True)
class Row:
    """
    A network of two layers, and an objective that it can be trained for.

    :ivar several: of the last layer, its ``num_selected`` and ``combine``; of the first too, where outputs combine.
    """

    first: Any
    last: Any
    objective: Objective
    several: dict[str, Any] = field(default_factory=dict)


GATES = {"num_selected": 2, "combine": "gates"}
TABLE: dict[str, Row] = {}
for name, rule in RULES.items():
    TABLE[f"{name}-router"] = Row(rule, rule, "router")
    TABLE[f"{name}-balanced"] = Row(rule, rule, "balanced")
    TABLE[f"{name}-mixture"] = Row(rule, CapacitySkip, "mixture", {"num_selected": 2})
for name, law in DISTRIBUTIONS.items():
    selects = CapacitySkip if law is GumbelMatching else law  # which selects one expert only
    TABLE[f"{name}-router"] = Row(law, law, "router")
    TABLE[f"{name}-mixture"] = Row(law, selects, "mixture", {"num_selected": 2})
    if law is not DependentRounding:  # which has no law for a score function
        TABLE[f"{name}-balanced"] = Row(law, law, "balanced")
        if law is not GumbelMatching:
            TABLE[f"{name}, m = 2-balanced"] = Row(law, law, "balanced", GATES)

#: every network once: a compiler does not see the objective
COMPILED = {name: row for name, row in TABLE.items() if row.objective == "router" or "m = 2" in name}
CASES = {f"{name}-{elbo.__name__}": (row, elbo) for name, row in TABLE.items() for elbo in ELBOS[row.objective]}


class Network(nn.Module):
    """Two layers, the first with a residual connection, and the last too where it puts out one vector."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.several = row.several if row.objective == "mixture" else {}
        first = {} if self.several else row.several
        self.layers = nn.ModuleList([layer_of(row.first, **first), layer_of(row.last, **row.several)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first, last = self.layers
        x = x + first(x, mask, **options_for(first.rule, x))
        out = last(x, mask, **options_for(last.rule, x))
        return out if self.several else x + out


@dataclass(frozen=True)
class Data:
    x: Tensor
    y: Tensor
    mask: Tensor | None

    @property
    def present(self) -> Tensor:
        return torch.ones_like(self.y, dtype=torch.bool) if self.mask is None else self.mask


def one_batch() -> Data:
    return Data(datapoints(7), torch.randn(7, dtype=torch.float64), None)


def padded_batches() -> Data:
    mask = torch.tensor([[True] * 7, [True, True, False, True, True, False, False]])
    return Data(datapoints(2, 7), torch.randn(2, 7, dtype=torch.float64), mask)


def likelihood(out: Tensor) -> Normal:
    return Normal(out.sum(-1), 1.0)


def gradients(loss: Tensor, net: nn.Module) -> list[Tensor]:
    """Zero where there is none."""
    return list(torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, materialize_grads=True))


def plain(net: nn.Module, data: Data, objective: Objective, *, own_score: bool = False) -> tuple[Tensor, list[Tensor]]:
    """
    Loss and gradients in plain torch.

    :param own_score: whether to take the scores of the assignments from the gradients, whose expectation is 0, as
        Pyro's own ELBOs do: to them the model's log-probability of an assignment is one more term of the objective.
    """
    torch.manual_seed(4)
    with record_routing() as routed:
        out = net(data.x, data.mask)
    assert list(routed.record().layers) == ["layers.0", "layers.1"]
    y = data.y.unsqueeze(-2) if objective == "mixture" else data.y
    losses = -likelihood(out).log_prob(y) * (data.present.unsqueeze(-2) if objective == "mixture" else data.present)
    loss = routed.surrogate(losses.sum(-1) if objective == "balanced" else losses, objective=objective).sum()
    loss = loss + (routed.loss * data.present.sum(-1)).sum()
    trained = loss
    if own_score:
        for law, value in (visit.drawn for visit in routed.visits if visit.drawn is not None):
            trained = trained - law.log_prob(value).sum()
    return loss.detach(), gradients(trained, net)


def pyro_model(net: Network, data: Data) -> Callable[[], None]:
    """The network in a model; where the last layer puts out several vectors, a mixture of its parts stands for it."""
    first, last = net.layers
    mixture = MixtureOfExperts(
        *(last.router, last.experts, likelihood),
        assignment=last.assignment,
        capacity_factor=1.0,
        num_selected=last.num_selected,
    )

    def model() -> None:
        pyro.module("net", net)
        plate = pyro.plate("batch", 2, dim=-2) if data.x.dim() > 2 else contextlib.nullcontext()
        with plate:
            if net.several:
                hidden = data.x + first(data.x, data.mask, **options_for(first.rule, data.x))
                number()
                mixture(hidden, data.y, data.mask)
                return
            out = net(data.x, data.mask)
            with pyro.plate("data", 7, dim=-1), poutine.mask(mask=data.present):
                pyro.sample("y", likelihood(out), obs=data.y)

    def number(*_: Any) -> None:  # that a layer outside of Pyro takes before it draws
        torch.empty((), dtype=torch.long).random_()

    for layer in net.layers:
        layer.register_forward_pre_hook(number)
    return model


def in_pyro(net: Network, data: Data, elbo: type) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients in Pyro."""
    model, guide = pyro_model(net, data), None
    if elbo in PYROS_OWN:
        sites = [f"layers.{index}" for index, layer in enumerate(net.layers) if layer.rule is None]
        guide = poutine.block(model, expose=sites) if sites else lambda: None
    torch.manual_seed(4)
    # The check of a model's assumption, once per ELBO, draws by itself.
    with pyro.validation_enabled(False):
        loss = elbo(max_plate_nesting=2).loss_and_grads(model, guide)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return torch.tensor(loss, dtype=torch.float64), found


@pytest.mark.parametrize("draw_data", [one_batch, padded_batches])
@pytest.mark.parametrize(("row", "elbo"), CASES.values(), ids=CASES)
def test_plain_torch_and_pyro_have_one_gradient(row: Row, elbo: type, draw_data: Callable[[], Data]) -> None:
    net, data = Network(row), draw_data()
    loss, expected = plain(net, data, row.objective, own_score=elbo in PYROS_OWN)
    ours, found = in_pyro(net, data, elbo)
    torch.testing.assert_close(ours, loss)
    for gradient, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-8, atol=1e-10)
    trained = dict(zip(dict(net.named_parameters()), expected, strict=True))
    assert all(bool((g != 0).any()) for name, g in trained.items() if "1.experts" in name)
    if not isinstance(row.first, RoutingRule):
        assert all(bool((g != 0).any()) for name, g in trained.items() if "router" in name)


@needs_compiler
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's, where it goes on compiling
@pytest.mark.parametrize("row", COMPILED.values(), ids=COMPILED)
def test_compiled_networks_equal_eager_ones(row: Row) -> None:
    net, data = Network(row), padded_batches()
    torch.compiler.reset()  # else the eighth network is the last one that is compiled
    backend = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, backend=backend)
    (ours, got), (loss, expected) = (plain(each, data, row.objective) for each in (compiled, net))
    assert backend.frame_count >= 1  # what stands between the layers is compiled
    torch.testing.assert_close(ours, loss)
    for gradient, exact in zip(got, expected, strict=True):
        torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("draw_data", [one_batch, padded_batches])
@pytest.mark.parametrize("name", RULES)
def test_rules_give_the_gradients_of_their_formula(name: str, draw_data: Callable[[], Data]) -> None:
    """The rule's routing of what each layer sees, put to its experts by hand."""
    net, data = Network(TABLE[f"{name}-router"]), draw_data()
    (loss, found), (other_loss, others) = (plain(net, data, objective) for objective in ("router", "balanced"))
    torch.manual_seed(4)
    x, auxiliary = data.x, torch.zeros(())
    for layer in net.layers:
        torch.empty((), dtype=torch.long).random_()  # the layer's own number
        routing = layer.rule(layer.router(x), mask=data.mask, **options_for(layer.rule, x))
        x = x + routing.output(layer.experts, x)
        auxiliary = auxiliary + (routing.loss * data.present.sum(-1)).sum()
    formula = -(likelihood(x).log_prob(data.y) * data.present).sum() + auxiliary
    torch.testing.assert_close(torch.stack([loss, other_loss]), formula.detach().expand(2))
    for gradient, other, exact in zip(found, others, gradients(formula, net), strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other, exact, rtol=1e-10, atol=1e-12)
    if not isinstance(RULES[name], HashRouting | RandomRouting):
        assert any(bool((g != 0).any()) for (n, _), g in zip(net.named_parameters(), found) if "router" in n)
