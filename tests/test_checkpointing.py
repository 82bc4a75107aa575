"""Activation checkpointing, which runs a forward pass again for the backward pass, changes no value and no gradient.

Torch's default ``preserve_rng_state=True`` is needed wherever something is drawn: the draw is repeated.
"""

import copy

import pytest
import torch
from pyro.distributions import Normal
from torch import nn
from torch.utils.checkpoint import checkpoint

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.rules import LossFreeBias
from tests.layer.test_layer import D, experts_of, options_for
from tests.rules.test_contract import RULES, K

reentrant_or_not = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


def value_and_gradients(layer, inputs, reentrant=None):
    """The output of a layer and its gradients, under checkpointing where ``reentrant`` is given."""
    torch.manual_seed(5)
    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    output = layer(*inputs) if reentrant is None else checkpoint(layer, *inputs, use_reentrant=reentrant)
    parameters = [*inputs, *layer.parameters()]
    output.square().sum().backward()
    return output, [parameter.grad for parameter in parameters]


def assert_changes_nothing(layer, inputs, reentrant):
    plain, checkpointed = copy.deepcopy(layer), copy.deepcopy(layer)
    output, gradients = value_and_gradients(plain, inputs)
    repeated, repeated_gradients = value_and_gradients(checkpointed, inputs, reentrant)
    assert torch.equal(output, repeated)
    assert any(gradient is not None for gradient in gradients)
    for ours, expected in zip(repeated_gradients, gradients, strict=True):
        assert (ours is None) == (expected is None)
        if ours is not None:
            torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)
    for (name, ours), (_, expected) in zip(checkpointed.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(ours, expected), name
    return checkpointed


class Layer(nn.Module):
    def __init__(self, router):
        super().__init__()
        self.router, self.experts = router, experts_of()

    def forward(self, logits, x):
        routing = self.router(logits, **options_for(self.router, logits.detach()))
        return routing.output(self.experts, x) + routing.loss


@reentrant_or_not
@pytest.mark.parametrize("case", RULES.values(), ids=RULES)
def test_routers(case, reentrant):
    layer = Layer(case.make())
    logits = 2 * torch.randn(12, layer.router.num_logits(K), dtype=torch.float64)
    assert_changes_nothing(layer, [logits, torch.randn(12, D, dtype=torch.float64)], reentrant)


class Drawn(nn.Module):
    """A draw, its weights and its router's probabilities, with a second draw that must not be mixed up with it."""

    def __init__(self, distribution):
        super().__init__()
        self.distribution, self.experts = distribution, experts_of()

    def forward(self, logits, x):
        options = {} if self.distribution is IndependentRouting else dict(capacity_factor=1.0)
        routing = self.distribution(logits, **options)
        out = torch.zeros_like(x)
        for value in (routing.sample(), routing.mode, routing.sample()):
            out = 2 * out + self.experts(x, value, capacity=12)
        weight = routing.importance_weights(value) * routing.router_log_prob(value)
        return out * weight.unsqueeze(-1)


@reentrant_or_not
@pytest.mark.parametrize("distribution", [CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting])
def test_distributions(distribution, reentrant):
    logits, x = torch.randn(12, K, dtype=torch.float64), torch.randn(12, D, dtype=torch.float64)
    assert_changes_nothing(Drawn(distribution), [logits, x], reentrant)


@reentrant_or_not
def test_loss_free_bias_counts_once_and_moves_when_told(reentrant):
    """Three steps of two microbatches each: routing, gradients and bias are those without checkpointing."""
    layer = Layer(LossFreeBias(K, rate=0.3))
    # One expert is preferred so much that the bias does not turn it around in three steps.
    logits = torch.randn(3, 2, 12, K, dtype=torch.float64) + torch.tensor([9.0, 0.0, 0.0])
    for step in range(3):
        for microbatch in range(2):
            inputs = [logits[step, microbatch], torch.randn(12, D, dtype=torch.float64)]
            before, counted = layer.router.bias.clone(), int(layer.router.counts.sum())
            layer = assert_changes_nothing(layer, inputs, reentrant)
            assert torch.equal(layer.router.bias, before)
            assert int(layer.router.counts.sum()) == counted + 12
        layer.router.update()
        assert not torch.equal(layer.router.bias, before)
        assert not bool(layer.router.counts.any())


def test_a_step_hook_updates_the_bias():
    layer = Layer(LossFreeBias(K))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda *_: layer.router.update())
    layer(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), torch.randn(1, D, dtype=torch.float64)).sum().backward()
    assert not bool(layer.router.bias.any())
    optimizer.step()
    torch.testing.assert_close(layer.router.bias, torch.tensor([-1e-3, 1e-3, 1e-3]))


def test_a_bias_that_nobody_updates_warns_once(monkeypatch):
    monkeypatch.setattr("prob_moe.rules.loss_free_bias.CALLS_BEFORE_WARNING", 3)
    router = LossFreeBias(K)
    router(torch.zeros(2, K))
    router(torch.zeros(2, K))
    with pytest.warns(UserWarning, match=r"called 3 times .* call router.update\(\)"):
        router(torch.zeros(2, K))
    router(torch.zeros(2, K))


@reentrant_or_not
def test_a_decaying_baseline_inside_is_an_error(reentrant):
    """The repeated pass would see another mean than the first one, and another gradient, without a word."""
    experts = BatchedExperts(3, 2, None, 1)
    mixture = MixtureOfExperts(
        nn.Linear(2, 3),
        experts,
        lambda out: Normal(out.squeeze(-1), 1.0),
        capacity_factor=1.0,
        baseline={"use_decaying_avg_baseline": True},
    )
    elbo, x, y = TraceRouting_ELBO(), torch.randn(6, 2, requires_grad=True), torch.randn(6)
    loss = checkpoint(lambda x: elbo.differentiable_loss(mixture, None, x, y), x, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="decaying average has moved"):
        loss.backward()
