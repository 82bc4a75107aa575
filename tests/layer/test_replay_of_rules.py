"""Records of rules and their replay: the recorded experts, and what the rule's formula gives them now."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prob_moe.distributions.support import router_choices
from prob_moe.layer import ExpertLayer, RecordedLayer, RoutingRecord, record_routing, replay_routing
from prob_moe.rules import (
    BASELayer,
    ExpertChoice,
    GumbelSoftmax,
    Routing,
    RoutingRule,
    SampledGate,
    SinkhornBASE,
    SparseMixer,
    SparseMixerV2,
    SparseRouting,
    SparsityConstrainedTransport,
    Switch,
    TopGates,
    top_choices,
)
from prob_moe.testing.statistics import deviation
from tests.layer.cases import RULES, K, datapoints, layer_of, options_for
from tests.layer.test_replay import network, record_of

#: draw something beside the experts, which a replay draws anew: into the output, and into the gradient
DRAW_STEPS = ("SparseMixer", "SparseMixer v2")
DRAW_MORE = (*DRAW_STEPS, "Gumbel-softmax")
OWN = {
    **RULES,
    "top-2 transport": SparsityConstrainedTransport(num_selected=2),
    "top-2 transport, tight": SparsityConstrainedTransport(num_selected=2, capacity_factor=1.0),
    "transport of wide support": SparsityConstrainedTransport(num_selected=2, regularization=1.0),
    "transport, softmax": SparsityConstrainedTransport(num_selected=2, gate="softmax"),
    "expert choice of one": ExpertChoice(capacity=1),
}


def results(layer: ExpertLayer, x: Tensor, mask: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients."""
    out = layer(x, mask, **options_for(layer.rule, x))
    parameters = list(layer.parameters())
    return out, list(torch.autograd.grad(out.square().sum(), parameters, allow_unused=True, materialize_grads=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OWN)
def test_a_record_of_the_same_network_changes_nothing(name: str, training: bool) -> None:
    layer, x = layer_of(OWN[name]).train(training), datapoints(2, 7)
    mask = torch.tensor([[True] * 7, [True, True, False, True, True, False, False]])
    with record_routing() as routed:
        out, expected = results(layer, x, mask)
    record = routed.record()
    with replay_routing(record), record_routing() as again:
        replayed, gradients = results(layer, x, mask)
    (first,), (second,) = (list(each.layers.values()) for each in (record, again.record()))
    assert (first.value is None) == (name in ("dense mixture", "SMEAR", "SMEAR, shared", "Soft MoE"))
    if first.value is not None:
        assert second.value is not None
        assert torch.equal(first.value, second.value)
    if not training or name not in DRAW_STEPS:
        torch.testing.assert_close(replayed, out)
    if not training or name not in DRAW_MORE:
        for ours, exact in zip(gradients, expected, strict=True):
            torch.testing.assert_close(ours, exact)
    with pytest.raises(ValueError, match=r"no law drew.*log_ratio"):
        again.log_ratio()


PRESENT_GATES: dict[str, tuple[Any, Any]] = {
    "switch": (Switch, lambda s, z: s.softmax(-1).mT.gather(-2, z)),
    "sampled gate": (SampledGate, lambda s, z: s.softmax(-1).mT.gather(-2, z)),
    "S-BASE": (SinkhornBASE, lambda s, z: s.mT.gather(-2, z).sigmoid()),
    "expert choice": (ExpertChoice, lambda s, z: s.softmax(-1).mT),
    "Gumbel-softmax": (GumbelSoftmax, lambda s, z: torch.ones(z.shape, dtype=torch.float64)),
    "top-2 gates": (TopGates, lambda s, z: s.mT.gather(-2, z).softmax(-2)),
    "transport, softmax": (
        partial(SparsityConstrainedTransport, gate="softmax"),
        lambda s, z: s.softmax(-1).mT.gather(-2, z),
    ),
}


@pytest.mark.parametrize(("rule", "gates"), PRESENT_GATES.values(), ids=PRESENT_GATES)
def test_replays_have_present_gates(rule: Any, gates: Any) -> None:
    behaviour, present, x = network(rule, layers=1), network(rule, layers=1), datapoints(2, 7)
    record = record_of(behaviour, x)
    with replay_routing(record), record_routing() as routed:
        out = present(x)
    value, block = record.layers["blocks.0"].value, present.blocks[0]
    assert torch.equal(routed.record().layers["blocks.0"].value, value)
    gate = gates(block.router(x), router_choices(value))
    outs = block.experts(x, value, capacity=14, num_selected=value.shape[-2])
    torch.testing.assert_close(out, x + (gate.unsqueeze(-1) * outs).sum(-3))


def test_what_passes_by_the_experts_has_the_present_share() -> None:
    behaviour, present, x = network(BASELayer, layers=1), network(BASELayer, layers=1), datapoints(2, 7)
    record = record_of(behaviour, x)
    with replay_routing(record):
        out = present(x)
    value, block = record.layers["blocks.0"].value, present.blocks[0]
    alpha = block.router(x).mT.gather(-2, value).sigmoid().squeeze(-2).unsqueeze(-1)
    outs = block.experts(x, value.squeeze(-2), capacity=7)
    torch.testing.assert_close(out, x + alpha * outs + (1 - alpha) * x)


def replayed(rule: RoutingRule, logits: Tensor, choices: Tensor) -> Routing:
    return rule.replay(rule(logits), logits, None, choices)


@pytest.mark.parametrize("mixer", [SparseMixer, SparseMixerV2])
def test_a_sparse_mixer_draws_its_step_anew(mixer: type[SparseMixer]) -> None:
    """Of its own law: full for the argmax, at times short for another expert, nothing outside of the window."""
    count, rule = 60_000, mixer(epsilon=0.2)
    logits = torch.tensor([2.0, 1.5, 0.1], dtype=torch.float64).requires_grad_()
    choices = torch.arange(count) % 3
    routing = replayed(rule, logits.expand(count, K), choices.unsqueeze(-2))
    assert isinstance(routing, SparseRouting)
    gate, p = routing.gate[0], logits[:2].softmax(-1)
    assert torch.equal(routing.assignment[0], choices)
    torch.testing.assert_close(gate[choices == 0], p[0].expand(count // 3))
    assert bool((gate[choices == 2] == 0).all())
    step = (gate[choices == 1] / p[1]).detach()
    full = (step - 1).abs() < 1e-12
    assert bool((full | ((step - rule.short).abs() < 1e-12)).all())
    assert deviation(full.double().unsqueeze(-1), torch.tensor([rule.full_probability])).worst()[0] < 5
    (ours,) = torch.autograd.grad(gate.sum(), logits, retain_graph=True)
    (exact,) = torch.autograd.grad(rule.slope * p.sum() * count / 3, logits)
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-10)


def test_gumbel_softmax_draws_the_noise_of_its_gradient_given_the_expert() -> None:
    """Where the record is a draw of the present router, experts and weights have the law of the rule itself."""
    rule, count = GumbelSoftmax(temperature=0.7), 60_000
    logits = torch.tensor([1.0, 0.5, -0.3], dtype=torch.float64).expand(count, K)
    own = rule(logits)
    assert own.chosen is not None
    choices = own.chosen
    won = nn.functional.one_hot(choices[0], K)

    def apart(weights: Tensor) -> float:
        """How far the means of weights and of their squares are from the rule's, expert by expert."""
        difference = torch.cat([weights - own.weights, weights.square() - own.weights.square()], -1)
        by_expert = (won.unsqueeze(-1) * difference.unsqueeze(-2)).flatten(-2)
        return deviation(by_expert, torch.zeros(by_expert.shape[-1])).worst()[0]

    again = replayed(rule, logits, choices)
    assert torch.equal(again.weights.argmax(-1), choices[0])
    assert apart(again.weights) < 5
    assert apart(rule(logits).weights) > 8  # noise that does not know who won


def test_gumbel_softmax_replays_a_forbidden_expert_without_a_gradient_to_it() -> None:
    logits = torch.tensor([[0.3, -torch.inf, 1.0]]).expand(5, K).clone().requires_grad_()
    routing = replayed(GumbelSoftmax(), logits, torch.ones(1, 5, dtype=torch.long))
    assert bool((routing.weights.argmax(-1) == 1).all())
    (gradient,) = torch.autograd.grad(routing.weights[:, 0].sum(), logits)
    assert bool(gradient.isfinite().all())
    assert bool((gradient[:, 1] == 0).all())


def test_transport_has_the_rows_of_recorded_experts_at_present_prices() -> None:
    rule = SparsityConstrainedTransport(num_selected=2, regularization=0.5)
    logits, choices = torch.randn(9, K, dtype=torch.float64), torch.randn(9, K).argsort(-1)[:, :2].T
    routing = replayed(rule, logits, choices)
    reduced = (logits.softmax(-1) - rule(logits).prices) / 0.5
    for i in range(9):
        a, b = reduced[i, choices[:, i]].tolist()
        first = min(max((1 + a - b) / 2, 0.0), 1.0)  # the projection of two numbers onto the simplex
        torch.testing.assert_close(routing.gate[:, i], torch.tensor([first, 1 - first], dtype=torch.float64))


def test_what_a_recorded_plan_does_not_use_gets_nothing_of_another() -> None:
    """A record of few entries leaves all of a datapoint to those that it has."""
    rule = SparsityConstrainedTransport(num_selected=2, regularization=0.02)
    recorded = rule(torch.randn(40, K, dtype=torch.float64)).assignment
    single = (recorded >= 0).sum(0) == 1
    assert bool(single.any())
    other = torch.randn(40, K, dtype=torch.float64)
    routing = rule.replay(rule(other), other, None, recorded)
    total = routing.gate.masked_fill(recorded < 0, 0.0).sum(0)
    torch.testing.assert_close(total, torch.ones(40, dtype=torch.float64))


def test_gradient_of_replayed_transport_is_its_derivative() -> None:
    """At prices that meet all sums, where the gradient is exact, and for experts that the present plan does not use."""
    rule, choices = SparsityConstrainedTransport(num_selected=K), torch.tensor([0, 1]).view(2, 1).expand(2, 9)
    logits = torch.randn(9, K, dtype=torch.float64, requires_grad=True)
    narrow = SparsityConstrainedTransport(num_selected=2)
    routing = rule(logits)

    def gates(s: Tensor) -> Tensor:
        return narrow.replay(rule(s), s, None, choices).gate

    assert bool((gates(logits) > 0).all(0).any())
    assert not torch.equal(routing.assignment[:2], choices)
    assert torch.autograd.gradcheck(gates, logits, atol=1e-6)


@pytest.mark.parametrize("rule", [SparseMixer, GumbelSoftmax, SparsityConstrainedTransport, ExpertChoice])
def test_checkpointing_changes_no_gradient_of_a_replay(rule: Any) -> None:
    plain, x = network(rule), datapoints(2, 6)
    repeated = copy.deepcopy(plain)
    repeated.checkpointed = True
    record = record_of(network(rule), x)

    def gradients(net: nn.Module) -> tuple[Tensor, ...]:
        torch.manual_seed(3)
        with replay_routing(record):
            out = net(x)
        return torch.autograd.grad(out.square().sum(), list(net.parameters()))

    for ours, expected in zip(gradients(repeated), gradients(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


class Halves(RoutingRule):
    """A rule without a word on what experts of a record would have for gates."""

    objective = "deterministic L of the mean of two experts"

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        logits, mask = self.prepare(logits, mask)
        choices = top_choices(logits, 2)
        return self.to_experts(logits, mask, choices, logits.new_full(choices.shape, 0.5))


def test_a_rule_that_tells_no_gates_is_refused_by_its_name() -> None:
    net, x = network(Halves, layers=1), datapoints(7)
    message = "Halves has no gates for experts that it did not choose: no replay"
    with pytest.raises(NotImplementedError, match=message), replay_routing(record_of(net, x)):
        net(x)


def test_a_rule_that_chooses_none_takes_no_record_of_one_that_does() -> None:
    layer, x = layer_of(RULES["dense mixture"]), datapoints(7)
    record = RoutingRecord({"experts": RecordedLayer(torch.zeros(1, 7, dtype=torch.long), None, K)})
    message = r"the record has an assignment of shape \(1, 7\) where the layer's is of shape None"
    with pytest.raises(ValueError, match=message), replay_routing(record):
        layer(x)
