"""Records of layers that give every datapoint several experts, and their replay by other routers."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from prob_moe.distributions import CapacitySkip, DependentRounding, IndependentRouting, mixture_bound
from prob_moe.distributions.sets import set_log_prob
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer, RecordedLayer, RoutingRecord, record_routing, replay_routing
from tests.layer.test_gradients import F64, inputs, losses_of

K = 3


class Scaled(nn.Module):
    def __init__(self, scale: float):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.square() * torch.tensor([1.0, -1.0, 0.5], dtype=F64) + x


def pair(assignment, capacity):
    experts = BatchedExperts(K, 1, None, 1, dtype=F64)
    make = partial(ExpertLayer, assignment=assignment, num_selected=2, capacity=capacity)
    return make(Scaled(1.0), experts), make(Scaled(-2.0), copy.deepcopy(experts))


def test_the_ratio_of_sets_equals_enumeration():
    behaviour, present = pair(IndependentRouting, None)
    x = inputs(4)
    many = x.expand(500, 4, 1)
    with torch.no_grad(), record_routing() as rollout:
        behaviour(many)
    with replay_routing(rollout.record()), record_routing() as routed:
        out = present(many)
    value = rollout.record().layers["experts"].value
    assert torch.equal(routed.record().layers["experts"].value, value)
    assert out.shape == (500, 2, 4, 1)
    expected = torch.zeros(500, 4, dtype=F64)
    for layer, sign in ((present, 1), (behaviour, -1)):
        p = layer.router(x).softmax(-1)
        odds = {frozenset((a, b)): p[:, a] * p[:, b] for a in range(K) for b in range(a)}
        total = sum(odds.values())
        for row in range(500):
            for i in range(4):
                expected[row, i] += sign * (odds[frozenset(value[row, :, i].tolist())] / total)[i].log().item()
    torch.testing.assert_close(routed.log_ratio().detach(), expected)
    # Its mean over sets is 1, and it moves the present router.
    sets = torch.tensor([[0, 1], [0, 2], [1, 2]]).view(3, 2, 1).expand(3, 2, 4)
    log_p = set_log_prob(behaviour.router(x).log_softmax(-1), sets)
    ratio = set_log_prob(present.router(x).log_softmax(-1), sets) - log_p
    torch.testing.assert_close((log_p + ratio).exp().sum(0), torch.ones(4, dtype=F64))
    assert torch.autograd.grad(routed.log_ratio().sum(), present.router.scale)[0] != 0


def test_the_ratio_makes_a_replay_of_sets_unbiased_and_its_absence_does_not():
    """
    All sets that a behaviour can draw, n = 2: weighed by their probability, the ratios give the present law of sets,
    and the loss of combined outputs its present mean and gradient, through gates, sets and experts.
    """
    behaviour, present = (Scaled(scale) for scale in (1.0, -2.0))
    experts = BatchedExperts(K, 1, None, 1, dtype=F64)
    with torch.no_grad():
        experts.output.weight.copy_(torch.tensor([0.5, -1.0, 2.0]).view(K, 1, 1))
        experts.output.bias.copy_(torch.tensor([1.0, 0.0, -2.0]).view(K, 1))
    layer = ExpertLayer(present, experts, IndependentRouting, num_selected=2, combine="gates", name="layer")
    x = inputs(2)
    law = IndependentRouting(behaviour(x).detach(), num_selected=2)
    values = law.enumerate_support()
    probability = law.log_prob(values).exp().unsqueeze(-1)
    log_set_prob = law.choice_log_prob(values)
    record = RoutingRecord({"layer": RecordedLayer(values, torch.zeros(values.shape), K, None, log_set_prob)})
    with replay_routing(record), record_routing() as routed:
        out = layer(x.expand(len(values), 2, 1))
    ratio, losses = routed.log_ratio().exp(), losses_of(out)

    p, outs = present(x).softmax(-1), experts.dense(x).squeeze(-1)
    sets = torch.tensor([[0, 1], [0, 2], [1, 2]])
    odds = p[:, sets].prod(-1)
    exact_law = odds / odds.sum(-1, keepdim=True)
    gates = p[:, sets] / p[:, sets].sum(-1, keepdim=True)
    combined = (gates * outs[:, sets]).sum(-1).T.unsqueeze(-1)
    exact_loss = (exact_law * losses_of(combined).T).sum(-1)

    def off(ours: Tensor, exact: Tensor) -> float:
        return float((ours - exact).detach().abs().max())

    def frequencies(weight: Tensor) -> Tensor:
        return torch.stack([(probability * weight * (values == s[:, None]).all(-2)).sum(0) for s in sets], -1)

    def gradient(loss: Tensor) -> Tensor:
        leaves = [present.scale, *experts.parameters()]
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss.sum(), leaves, retain_graph=True)])

    torch.testing.assert_close(frequencies(ratio), exact_law, rtol=1e-10, atol=1e-12)
    weighed, plain = ((probability * weight * losses).sum(0) for weight in (ratio, 1.0))
    torch.testing.assert_close(weighed, exact_loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient(weighed), gradient(exact_loss), rtol=1e-10, atol=1e-12)
    assert off(frequencies(torch.ones_like(ratio)), exact_law) > 0.1
    assert off(plain, exact_loss) > 0.1
    assert off(gradient(plain), gradient(exact_loss)) > 0.1
    # The gradient of the ratio is part of it.
    held = (probability * ratio.detach() * losses).sum(0)
    assert off(gradient(held), gradient(exact_loss)) > 0.1


@pytest.mark.parametrize(("assignment", "capacity"), [(CapacitySkip, 2), (DependentRounding, 2)])
def test_a_record_keeps_what_its_draw_knew(assignment, capacity):
    """The bound of a replay has the present p, and the recorded inclusion and keep probabilities."""
    behaviour, present = pair(assignment, capacity)
    x = inputs(4)
    with record_routing() as rollout:
        behaviour(x)
    ((law, value),) = (visit.drawn for visit in rollout.visits)
    with replay_routing(rollout.record()), record_routing() as routed:
        out = present(x)
    surrogate = routed.surrogate(losses_of(out), objective="mixture")
    log_pi = law.router_log_prob(value) - law.log_importance_weights(value)
    log_p = present.law(present.router(x)).router_log_prob(value)
    log_w = (log_p - log_pi).masked_fill(value < 0, -torch.inf).detach()
    torch.testing.assert_close(surrogate, -mixture_bound(log_w, log_p, -losses_of(out), law.keep_probability(value)))
    with pytest.raises(ValueError, match="'experts' has num_selected=2, for which log_ratio needs IndependentRouting"):
        routed.log_ratio()
