"""Switch and the sampled gate: a loop over datapoints, the gradient's definition, the law of the draws."""

import math

import pytest
import torch

from prob_moe.distributions.support import router_choices
from prob_moe.rules import SampledGate, Switch
from prob_moe.testing.statistics import deviation
from tests.rules.loops import K, assert_equals_loop, make_experts, mixture_loop


def switch_loop(capacity):
    def one(experts, x, logits, mask, model):
        taken, weights = [0] * K, []
        for i in range(len(x)):
            p = torch.exp(logits[i] - logits[i].logsumexp(-1))
            e = max(range(K), key=lambda j: logits[i, j])
            keep = bool(mask[i]) and taken[e] < capacity
            taken[e] += keep
            weights.append(torch.stack([p[j] if j == e and keep else 0 * p[j] for j in range(K)]))
        return mixture_loop(experts, x, torch.stack(weights), model=model)

    return one


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2,), ()), ((2,), (3,))])
def test_switch_equals_a_loop(batch, models, masked):
    assert_equals_loop(Switch(capacity=3), switch_loop(3), batch=batch, models=models, masked=masked)


def test_switch_without_limit_and_with_residual_experts():
    assert_equals_loop(Switch(), switch_loop(11), residual=True)
    assert_equals_loop(Switch(capacity=2), switch_loop(2), residual=True)


def test_switch_gradient_is_that_of_its_deterministic_model():
    """Finite differences of the loss, the auxiliary one included but for F, which is no function of the logits here."""
    router, experts = Switch(capacity=3, load_balancing=0.0, z_loss=0.1), make_experts()
    logits, x = torch.randn(7, K, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)

    def loss(logits):
        routing = router(logits)
        return routing.output(experts, x).square().sum() + routing.loss

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


def test_switch_loss():
    logits = torch.randn(2, 9, K, dtype=torch.float64)
    mask = torch.rand(2, 9) < 0.7
    # What capacity drops counts among the choices.
    loss = Switch(load_balancing=0.5, z_loss=0.25, capacity=1)(logits, mask=mask).loss
    for b in range(2):
        rows = [logits[b, i] for i in range(9) if mask[b, i]]
        balance = sum(
            K
            * sum(int(row.argmax()) == e for row in rows)
            / len(rows)
            * sum(row.softmax(-1)[e] for row in rows)
            / len(rows)
            for e in range(K)
        )
        z = sum(math.log(sum(math.exp(s) for s in row)) ** 2 for row in rows) / len(rows)
        assert loss[b] == pytest.approx(0.5 * balance + 0.25 * z)


def test_sampled_gate_draws_from_the_router_and_gates_by_it():
    logits = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64).expand(40_000, K)
    routing = SampledGate()(logits)
    choices = routing.assignment[0]
    p = logits[0].softmax(-1)
    torch.testing.assert_close(routing.gate[0], p[choices])
    assert deviation(torch.nn.functional.one_hot(choices, K).double(), p).worst()[0] < 5


def test_sampled_gate_equals_a_loop_given_its_draw():
    router, experts = SampledGate(capacity=3, load_balancing=0.0, z_loss=0.0), make_experts()
    logits = torch.randn(11, K, dtype=torch.float64, requires_grad=True)
    x, probe = torch.randn(11, 4, dtype=torch.float64), torch.randn(11, 4, dtype=torch.float64)
    routing = router(logits)
    choices = router_choices(routing.assignment[0])
    assert not torch.equal(choices, logits.argmax(-1))
    # The definition: dp_e = p_e (1[j = e] - p_j), and nothing from those that came too late.
    taken, expected, for_logits = [0] * K, torch.zeros_like(x), torch.zeros_like(logits)
    outputs = experts.dense(x)
    for i in range(11):
        e = int(choices[i])
        if taken[e] < 3:
            p = logits[i].detach().softmax(-1)
            expected[i] = (p[e] * outputs[i, e]).detach()
            along = torch.eye(K, dtype=torch.float64)[e] - p
            for_logits[i] = (probe[i] @ outputs[i, e] * p[e] * along).detach()
        taken[e] += 1
    output = routing.output(experts, x)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(torch.autograd.grad((output * probe).sum(), logits)[0], for_logits)


def test_sampled_gate_serves_as_switch():
    logits = torch.randn(11, K, dtype=torch.float64)
    ours, switch = SampledGate(capacity=3).eval()(logits), Switch(capacity=3)(logits)
    assert torch.equal(ours.assignment, switch.assignment)
    assert torch.equal(ours.gate, switch.gate)
    assert torch.equal(ours.loss, switch.loss)


def test_bad_weights():
    with pytest.raises(ValueError, match="load_balancing must be a weight >= 0, got -1"):
        Switch(load_balancing=-1.0)
    with pytest.raises(ValueError, match="z_loss must be a weight >= 0, got nan"):
        SampledGate(z_loss=math.nan)
