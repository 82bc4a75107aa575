"""σ-MoE against loops; its entropy against the sum, its dropout against frequencies."""

import math

import pytest
import torch

from prob_moe.rules import SigmaMoE
from tests.rules.loops import D, K, assert_equals_loop, make_experts, mixture_loop


def loop(selected, capacity):
    def one(experts, x, logits, mask, model):
        gates = torch.zeros_like(logits)
        loads = [0] * K
        for rank in range(selected):
            for i in mask.nonzero().flatten().tolist():
                e = sorted(range(K), key=lambda e: -logits[i, e].item())[rank]
                loads[e] += 1
                if loads[e] <= capacity:
                    gates[i, e] = torch.sigmoid(logits[i, e])
        return mixture_loop(experts, x, gates, None, model)

    return one


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2, 2), ()), ((2,), (2,))])
@pytest.mark.parametrize(("selected", "capacity"), [(1, None), (2, None), (2, 5), (3, 4)])
def test_equals_loop(selected, capacity, batch, models, masked):
    router = SigmaMoE(num_selected=selected, capacity=capacity)
    assert_equals_loop(router, loop(selected, capacity or 11), batch=batch, models=models, masked=masked)


def test_equals_loop_with_other_experts():
    assert_equals_loop(SigmaMoE(), loop(2, 11), residual=True)
    assert_equals_loop(SigmaMoE(), loop(2, 11), hidden=None, out=2)


def test_gradient_is_the_derivative_of_output_and_loss():
    experts, x = make_experts(), torch.randn(7, D, dtype=torch.float64)
    logits = torch.randn(7, K, dtype=torch.float64, requires_grad=True)
    router = SigmaMoE(entropy_weight=0.7)

    def objective(s):
        routing = router(s)
        return routing.output(experts, x).square().sum() + routing.loss

    assert torch.autograd.gradcheck(objective, logits)


@pytest.mark.parametrize("masked", [False, True])
def test_loss_is_the_negative_entropy_of_the_mean_router(masked):
    logits = torch.randn(2, 9, K, dtype=torch.float64)
    mask = torch.rand(2, 9) < 0.6 if masked else None
    loss = SigmaMoE(entropy_weight=2.0)(logits, mask=mask).loss
    for b in range(2):
        rows = [i for i in range(9) if mask is None or mask[b, i]]
        mean = [sum(math.exp(logits[b, i].log_softmax(-1)[e]) for i in rows) / len(rows) for e in range(K)]
        assert loss[b].item() == pytest.approx(2.0 * sum(q * math.log(q) for q in mean))


def test_loss_pulls_towards_balance():
    logits = torch.zeros(6, 2, dtype=torch.float64)
    logits[:, 0] = 1.0
    logits.requires_grad_()
    SigmaMoE(num_selected=1, entropy_weight=1.0)(logits).loss.backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1] < 0).all()


def test_dropout_hides_experts_in_training_only():
    """The best expert is used by 1 − δ of the datapoints, and by all in serving."""
    logits = torch.tensor([3.0, 2.0, 1.0]).expand(20_000, 3)
    router = SigmaMoE(num_selected=2, expert_dropout=0.3)
    assignment = router(logits).assignment
    uses = [((assignment == e).sum(0) > 0).double().mean().item() for e in range(3)]
    used = [0.7, 0.7, 0.7 * (1 - 0.7**2)]  # the third where it is visible and one of the others hidden
    for share, expected in zip(uses, used):
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 20_000)
    served = router.eval()(logits).assignment
    assert (served[0] == 0).all()
    assert (served[1] == 1).all()


def test_what_dropout_leaves_none_of_is_dropped():
    routing = SigmaMoE(num_selected=1, expert_dropout=0.9)(torch.zeros(2000, 2))
    missing = routing.assignment[0] < 0
    assert abs(missing.double().mean().item() - 0.81) < 5 * math.sqrt(0.81 * 0.19 / 2000)
    assert (routing.gate[0, missing] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_extreme_logits(scale, dtype):
    logits = (torch.randn(20, 4).sign() * scale).to(dtype)
    logits[:, 3] = -torch.inf
    logits.requires_grad_()
    routing = SigmaMoE(num_selected=4)(logits)
    assert (routing.assignment[-1] == ~3).all()
    assert routing.loss.dtype == routing.gate.dtype == dtype
    (gradient,) = torch.autograd.grad(routing.gate.sum() + routing.loss, logits)
    assert gradient.isfinite().all()
    # A sigmoid of both would be 1, and the tie would go to the first.
    assert SigmaMoE(num_selected=1)(torch.tensor([[200.0, 300.0]])).assignment.item() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_selected": 0}, "num_selected must be a positive int"),
        ({"entropy_weight": -1.0}, "entropy_weight must be a weight >= 0, got -1.0"),
        ({"expert_dropout": 1.0}, "expert_dropout must be a probability below 1, but is 1.0"),
        ({"num_selected": 4}, "num_selected=4 exceeds the number of experts, 3"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SigmaMoE(**options)(torch.zeros(5, K))
