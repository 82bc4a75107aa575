"""Records of expert layers and their replay by other networks."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.distributions.support import router_choices
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer
from prob_moe.layer.recording import record_routing
from prob_moe.layer.records import MISSING, RecordedLayer, RoutingRecord
from prob_moe.layer.replaying import replay_routing
from prob_moe.rules import (
    Switch,
)
from tests.estimators.replicas import problem

DISTRIBUTIONS = [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding]
K, D = 3, 4


def network(assignment, layers=2, k=K, checkpointed=False, **options):
    options = {"capacity_factor": 1.0} | options
    return Network(layers, k, assignment, options, checkpointed)


class Network(nn.Module):
    def __init__(self, layers, k, assignment, options, checkpointed):
        super().__init__()
        self.blocks = nn.ModuleList(
            ExpertLayer(None, BatchedExperts(k, D, 5, D, dtype=torch.float64), assignment, **options)
            for _ in range(layers)
        )
        self.checkpointed = checkpointed

    def forward(self, x, mask=None):
        for block in self.blocks:
            x = x + (checkpoint(block, x, mask, use_reentrant=False) if self.checkpointed else block(x, mask))
        return x


def datapoints(*shape):
    return torch.randn(*shape, D, dtype=torch.float64)


def record_of(net, x, mask=None):
    with torch.no_grad(), record_routing() as routed:
        net(x, mask)
    return routed.record()


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("padded", [False, True])
def test_recorded_experts_are_used_and_weighed_by_both_routers(distribution, padded):
    behaviour, present, x = network(distribution), network(distribution), datapoints(2, 7)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3]) if padded else None
    record = record_of(behaviour, x, mask)
    file = io.BytesIO()
    torch.save(record.state_dict(), file)
    file.seek(0)
    record = RoutingRecord.from_state_dict(torch.load(file))
    with replay_routing(record), record_routing() as routed:
        out = present(x, mask)
    replayed = routed.record()
    assert list(replayed.layers) == list(record.layers) == ["blocks.0", "blocks.1"]
    h, expected = x, torch.zeros(2, 7, dtype=torch.float64)
    there = torch.ones(2, 7, dtype=torch.bool) if mask is None else mask
    for block, name in zip(present.blocks, record.layers, strict=True):
        recorded = record.layers[name]
        assert torch.equal(replayed.layers[name].value, recorded.value)
        assert bool(((recorded.value == MISSING) == ~there).all())
        value = torch.where(there, recorded.value, -1)
        log_p = block.router(h).log_softmax(-1).gather(-1, router_choices(value).unsqueeze(-1)).squeeze(-1)
        expected = expected + torch.where(there, log_p - recorded.log_proposal, 0.0)
        h = h + block.experts(h, value, capacity=7, mask=there)
    torch.testing.assert_close(routed.log_ratio(), expected)
    torch.testing.assert_close(out[there], h[there])
    # The surrogate's weights are the ratios, and both have a gradient in the present routers.
    torch.testing.assert_close(routed.surrogate(torch.ones(2, 7, dtype=torch.float64)), expected.exp() * there)
    gradients = torch.autograd.grad(
        routed.log_ratio()[expected > -torch.inf].sum(), list(present.blocks[0].router.parameters())
    )
    assert all(bool((gradient != 0).any()) for gradient in gradients)


def test_the_ratio_makes_a_replay_unbiased_and_its_absence_does_not():
    """All outcomes of a behaviour under skip, n = 4: weighed by their probability, the ratios give the present p."""
    (logits, _), k = problem(8, 3), 3
    behaviour = CapacitySkip(logits[:4], capacity=2)
    values = behaviour.enumerate_support()
    probability = behaviour.log_prob(values).exp()
    log_proposal = behaviour.router_log_prob(values) - behaviour.log_weights(values)
    layer = ExpertLayer(
        nn.Identity(), BatchedExperts(k, k, None, 1, dtype=torch.float64), CapacitySkip, capacity=2, name="layer"
    )
    record = RoutingRecord({"layer": RecordedLayer(values, log_proposal, k)})
    with replay_routing(record), record_routing() as routed:
        layer(logits[4:].expand(len(values), 4, k))
    ratio = routed.log_ratio().exp()

    def frequencies(weight):
        return torch.stack([(probability.unsqueeze(-1) * weight * (values == j)).sum(0) for j in range(k)], -1)

    torch.testing.assert_close(frequencies(ratio), logits[4:].softmax(-1), rtol=1e-10, atol=1e-12)
    kept = (values >= 0).double()
    assert float((frequencies(kept) - logits[4:].softmax(-1)).abs().max()) > 0.1
    stale = behaviour.importance_weights(values)
    assert float((frequencies(stale) - logits[4:].softmax(-1)).abs().max()) > 0.1


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("replay", [False, True])
def test_checkpointing_changes_no_gradient_and_records_once(distribution, replay):
    """The backward pass comes after the contexts have ended."""
    plain, x = network(distribution), datapoints(2, 6)
    repeated = copy.deepcopy(plain)
    repeated.checkpointed = True
    record = record_of(network(distribution), x)

    def gradients(net):
        torch.manual_seed(3)
        with record_routing() as routed:
            if replay:
                with replay_routing(record):
                    out = net(x)
            else:
                out = net(x)
        assert len(routed.visits) == 2
        loss = routed.surrogate(out.square().sum(-1)).sum()
        gradients = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
        assert len(routed.visits) == 2
        return gradients

    for ours, expected in zip(gradients(repeated), gradients(plain), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_a_pass_without_replay_draws_again_when_it_is_repeated():
    """Though a replay with the same seed went before, whose record is still there."""
    net, x = network(CapacitySkip, checkpointed=True), datapoints(6)
    record = record_of(network(CapacitySkip), x)
    torch.manual_seed(3)
    with replay_routing(record), record_routing():
        net(x)
    torch.manual_seed(3)
    with record_routing() as routed:
        out = net(x)
    gradients = torch.autograd.grad(routed.surrogate(out.square().sum(-1)).sum(), net.blocks[1].experts.output.bias)
    net.checkpointed = False
    torch.manual_seed(3)
    with record_routing() as routed:
        out = net(x)
    expected = torch.autograd.grad(routed.surrogate(out.square().sum(-1)).sum(), net.blocks[1].experts.output.bias)
    torch.testing.assert_close(gradients, expected)


def test_reentrant_checkpointing_is_refused_where_it_would_lose_the_gradient():
    layer, x = network(CapacitySkip, layers=1).blocks[0], datapoints(6).requires_grad_()
    with record_routing() as routed:
        out = checkpoint(layer, x, use_reentrant=True)
    with pytest.raises(ValueError, match=r"torch.no_grad\(\).*use_reentrant=False"):
        routed.surrogate(out.sum(-1))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_record_of_inference_mode_trains(distribution):
    net, x = network(distribution), datapoints(6)
    with torch.inference_mode(), record_routing() as rollout:
        net(x)
    record = rollout.record()
    with replay_routing(record), record_routing() as routed:
        out = net(x)
    routed.surrogate(out.square().sum(-1)).sum().backward()
    assert all(torch.equal(a.value, b.value) for a, b in zip(record.layers.values(), routed.record().layers.values()))
    torch.testing.assert_close(
        routed.log_ratio().exp(), routed.surrogate(torch.ones(6, dtype=torch.float64)).detach().to(torch.float64)
    )


def test_served_experts_can_be_replayed_but_have_no_ratio():
    net, x = network(IndependentRouting).eval(), datapoints(5)
    record = record_of(net, x)
    with replay_routing(record), record_routing() as routed:
        out = net.train()(x)
    torch.testing.assert_close(out, net.eval()(x))
    with pytest.raises(ValueError, match="no law drew"):
        routed.log_ratio()


BAD_RECORDS = [
    (dict(layers=1), {}, r"layers \['blocks.1'\] that the network did not run"),
    (dict(layers=3), {}, r"no layer 'blocks.2'.*another network"),
    (dict(k=4), {}, "3 experts where the layer has 4"),
    ({}, dict(n=6), r"shape \(7,\) where the layer's is of shape \(6,\)"),
    ({}, dict(mask=True), "padding where the mask has none, or the other way round"),
    (dict(capacity=1, capacity_factor=None), {}, "outside of the layer's support"),
]


@pytest.mark.parametrize("assignment", [CapacitySkip, Switch])
@pytest.mark.parametrize(("options", "call", "message"), BAD_RECORDS)
def test_records_of_other_networks(assignment, options, call, message):
    if assignment is Switch:
        if "support" in message:
            return
        message = message.replace("(7,)", "(1, 7)").replace("(6,)", "(1, 6)").replace(r"\(7,\)", r"\(1, 7\)")
        message = message.replace(r"\(6,\)", r"\(1, 6\)")
    record = record_of(network(assignment), datapoints(7))
    x = datapoints(call.get("n", 7))
    mask = torch.tensor([True] * 6 + [False]) if "mask" in call else None
    net = network(assignment, **options)
    with pytest.raises(ValueError, match=message), torch.no_grad(), replay_routing(record):
        net(x, mask)
