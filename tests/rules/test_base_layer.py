"""BASE: the matching against POT and brute force, outputs and gradients against loops."""

import itertools

import numpy as np
import ot
import pytest
import torch

from prob_moe.rules import BASELayer
from tests.rules.loops import D, K, assert_equals_loop, expert_output, make_experts, mixture_loop


def brute_force(logits, mask, capacity):
    """The best assignment of the present datapoints, by trying all of them."""
    present, scores = mask.nonzero().flatten().tolist(), logits.tolist()
    candidates = (
        z for z in itertools.product(range(K), repeat=len(present)) if max(map(z.count, range(K))) <= capacity
    )
    best = max(candidates, key=lambda z: sum(scores[i][e] for i, e in zip(present, z)))
    return dict(zip(present, best))


def loop(capacity, training, carry=True):
    def one(experts, x, logits, mask, model):
        if training:
            present = int(mask.sum())
            chosen = brute_force(logits, mask, capacity or max(1, -(-present // K)))
        else:
            chosen = {i: int(logits[i].argmax()) for i in range(len(x)) if mask[i]}
        alpha = torch.zeros_like(logits)
        for i, e in chosen.items():
            alpha[i, e] = torch.sigmoid(logits[i, e])
        carried = torch.where(mask, 1 - alpha.sum(-1), 0.0) if carry else None
        return mixture_loop(experts, x, alpha, carried, model)

    return one


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2,), ()), ((2,), (2,))])
@pytest.mark.parametrize("training", [True, False])
def test_equals_loop(training, batch, models, masked):
    router = BASELayer().train(training)  # the tightest capacity, of those who are present
    assert_equals_loop(router, loop(None, training), batch=batch, models=models, n=7, masked=masked)


def test_equals_loop_without_carry_and_with_residual_experts():
    assert_equals_loop(BASELayer(carry=False), loop(3, True, carry=False), n=7, out=2)
    assert_equals_loop(BASELayer(capacity=4), loop(4, True), n=7, residual=True)


@pytest.mark.parametrize(("n", "k"), [(40, 4), (64, 8)])
def test_matching_is_that_of_exact_transport(n, k):
    logits = torch.randn(n, k, dtype=torch.float64) + torch.linspace(0, 3, k)
    assignment = BASELayer()(logits).assignment[0]
    plan = ot.emd(np.ones(n), np.full(k, n / k), -logits.numpy())
    assert (assignment == torch.from_numpy(plan).argmax(-1)).all()
    assert (assignment.bincount(minlength=k) == n // k).all()


def test_gradient_is_that_of_the_gate_alone():
    """By hand: ∂y/∂s = α (1 − α) (f(x) − x) for the chosen expert, 0 for the others."""
    experts, x = make_experts(), torch.randn(6, D, dtype=torch.float64)
    logits = torch.randn(6, K, dtype=torch.float64, requires_grad=True)
    routing = BASELayer()(logits)
    probe = torch.randn(6, D, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((routing.output(experts, x) * probe).sum(), logits)
    expected = torch.zeros_like(logits)
    for i, e in enumerate(routing.assignment[0].tolist()):
        alpha = torch.sigmoid(logits[i, e])
        expected[i, e] = alpha * (1 - alpha) * ((expert_output(experts, x[i], e) - x[i]) * probe[i]).sum()
    torch.testing.assert_close(gradient, expected.detach())


def test_serving_takes_the_best_expert_without_limit():
    logits = torch.randn(9, K)
    logits[:, 1] += 100
    assert (BASELayer().eval()(logits).assignment == 1).all()
    assert (BASELayer()(logits).assignment[0].bincount() == 3).all()


def test_padding_takes_no_capacity():
    logits = torch.randn(9, K)
    mask = torch.arange(9) < 3
    routing = BASELayer(capacity=1)(logits, mask=mask)
    assert (routing.assignment[0, 3:] == -1).all()
    assert sorted(routing.assignment[0, :3].tolist()) == [0, 1, 2]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="capacity=2 is too small"):
        BASELayer(capacity=2)(torch.zeros(7, K))
    with pytest.raises(ValueError, match="capacity or capacity_factor, not both"):
        BASELayer(capacity=2, capacity_factor=1.0)
    with pytest.raises(ValueError, match="out_features = in_features"):
        BASELayer()(torch.zeros(3, K)).output(make_experts(out=2), torch.zeros(3, D, dtype=torch.float64))
