"""Loss-free bias: a loop, the update by its definition, and balance as its effect."""

import pytest
import torch

from prob_moe.diagnostics import max_mean_load
from prob_moe.distributions.support import expert_counts, router_choices
from prob_moe.rules import LossFreeBias
from tests.rules.loops import K, assert_equals_loop, mixture_loop


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2,), ()), ((2,), (3,))])
@pytest.mark.parametrize(("num_selected", "capacity"), [(1, 11), (1, 3), (2, 5)])
def test_equals_a_loop(batch, models, masked, num_selected, capacity):
    router = LossFreeBias(K, num_selected=num_selected, batch_shape=models, capacity=capacity)
    router.bias.copy_(0.5 * torch.randn(router.bias.shape))
    bias = router.bias.double().clone()

    def one(experts, x, logits, mask, model):
        score = 1 / (1 + torch.exp(-logits))
        taken, weights = [0] * K, [[0 * s for s in row] for row in score]
        for rank in range(num_selected):
            for i in range(len(x)):
                e = sorted(range(K), key=lambda j: -float(score.detach()[i, j] + bias[model][j]))[rank]
                if mask[i] and taken[e] < capacity:
                    taken[e] += 1
                    weights[i][e] = score[i, e]
        return mixture_loop(experts, x, torch.stack([torch.stack(row) for row in weights]), model=model)

    assert_equals_loop(router, one, batch=batch, models=models, masked=masked)


@pytest.mark.parametrize("models", [(), (3,)])
def test_bias_moves_by_the_loads_in_training_only(models):
    router = LossFreeBias(K, rate=0.01, batch_shape=models, capacity=2)
    logits, mask = torch.randn(4, *models, 11, K), torch.rand(4, *models, 11) < 0.8
    expected = torch.zeros(*models, K)
    for _ in range(5):
        before = router.bias.clone()
        router.eval()
        router(logits, mask=mask)
        assert torch.equal(router.bias, before)
        router.train()
        choices = router_choices(router(logits, mask=mask).assignment.squeeze(-2))
        router.update()
        # Choices that capacity drops are counted, padding is not; batches share the bias, models do not.
        loads = expert_counts(choices, mask, K).sum(0).float()
        expected += 0.01 * (loads.mean(-1, keepdim=True) - loads).sign()
        torch.testing.assert_close(router.bias, expected)
        logits = logits + 0.1 * torch.randn_like(logits)


def test_balanced_loads_leave_the_bias():
    router = LossFreeBias(3)
    router(3 * torch.eye(3).repeat(4, 1))
    router.update()
    assert torch.equal(router.bias, torch.zeros(3))


def test_bias_balances_a_router_that_prefers_one_expert():
    router = LossFreeBias(K, rate=1e-2)
    preference = torch.tensor([1.5, 0.0, -0.5])

    def imbalance():
        assignment = router.eval()(torch.randn(4000, K) + preference).assignment[0]
        return float(max_mean_load(expert_counts(assignment, assignment >= 0, K)))

    assert imbalance() > 1.5
    for _ in range(200):
        router.train()(torch.randn(500, K) + preference)
        router.update()
    assert imbalance() < 1.1
    assert not router.bias.requires_grad


def test_state_dict_carries_the_bias():
    router, other = LossFreeBias(K), LossFreeBias(K)
    router(torch.tensor([[1.0, 0.0, 0.0]]))
    router.update()
    assert list(router.state_dict()) == ["bias"]
    assert not bool(other.bias.any())
    other.load_state_dict(router.state_dict())
    assert torch.equal(other.bias, torch.tensor([-1e-3, 1e-3, 1e-3]))


def test_bias_keeps_its_precision_beside_bfloat16():
    router = LossFreeBias(2)
    for _ in range(600):
        routing = router(torch.tensor([[8.0, -8.0]], dtype=torch.bfloat16))
        router.update()
    assert routing.gate.dtype == torch.bfloat16
    # σ(8) - σ(-8) = 0.999: the bias makes up for it in steps of 0.001, and then stays about there.
    assert abs(float(router.bias.diff()) - 0.999) < 0.01


def test_forbidden_experts_are_not_lifted_by_the_bias():
    router = LossFreeBias(2)
    router.bias.copy_(torch.tensor([-5.0, 5.0]))
    assert router(torch.tensor([[0.0, -torch.inf]])).assignment.tolist() == [[0]]


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_experts must be a positive int"):
        LossFreeBias(0)
    with pytest.raises(ValueError, match="rate must be a weight >= 0"):
        LossFreeBias(3, rate=-1e-3)
    with pytest.raises(ValueError, match="num_selected=4 exceeds"):
        LossFreeBias(3, num_selected=4)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"logits of shape \(5, 4\).*k = 3"):
        LossFreeBias(3)(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=r"logits of shape \(5, 3\).*batch_shape \(2,\)"):
        LossFreeBias(3, batch_shape=(2,))(torch.zeros(5, 3))
