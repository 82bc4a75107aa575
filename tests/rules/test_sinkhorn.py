"""S-BASE: the plan against POT's Sinkhorn and its own optimality conditions, the router against loops."""

import numpy as np
import ot
import pytest
import torch

from prob_moe.numerics import sinkhorn_log_plan
from prob_moe.rules import SinkhornBASE
from tests.rules.loops import K, assert_equals_loop, mixture_loop


def pot_plan(logits):
    n, k = logits.shape
    return ot.sinkhorn(
        np.ones(n), np.full(k, n / k), -logits, reg=1.0, method="sinkhorn_log", numItermax=10_000, stopThr=1e-12
    )


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(("n", "k"), [(30, 3), (31, 4), (5, 8)])
def test_plan_is_that_of_another_sinkhorn(n, k, scale):
    logits = scale * (torch.randn(n, k, dtype=torch.float64) + torch.linspace(0, 2, k))
    plan = sinkhorn_log_plan(logits, max_iterations=10_000, tolerance=1e-10).exp()
    torch.testing.assert_close(plan, torch.from_numpy(pot_plan(logits.numpy())), rtol=0, atol=1e-8)


def test_plan_is_the_optimum():
    """Marginals, and log P − s is a sum of a datapoint's and an expert's price."""
    logits = torch.randn(2, 3, 20, 4, dtype=torch.float64) * 3
    log_plan = sinkhorn_log_plan(logits, max_iterations=1000, tolerance=1e-11)
    torch.testing.assert_close(log_plan.exp().sum(-1), torch.ones(2, 3, 20, dtype=torch.float64))
    torch.testing.assert_close(log_plan.exp().sum(-2), torch.full((2, 3, 4), 5.0, dtype=torch.float64))
    prices = log_plan - logits
    interaction = prices - prices[..., :1, :] - prices[..., :, :1] + prices[..., :1, :1]
    assert interaction.abs().max() < 1e-10


def test_plan_of_padding_equals_removed_rows():
    logits = torch.randn(12, 4, dtype=torch.float64)
    mask = torch.arange(12) % 3 != 0
    full = sinkhorn_log_plan(logits, mask=mask)
    torch.testing.assert_close(full[mask], sinkhorn_log_plan(logits[mask]), rtol=0, atol=1e-12)
    assert (full[~mask] == -torch.inf).all()
    assert not sinkhorn_log_plan(logits, mask=torch.zeros(12, dtype=torch.bool)).isnan().any()


@pytest.mark.parametrize("scale", [100.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(scale, dtype):
    logits = (torch.randn(50, 4).sign() * scale).to(dtype).requires_grad_()
    log_plan = sinkhorn_log_plan(logits)
    torch.testing.assert_close(log_plan.exp().sum(-1), torch.ones(50, dtype=torch.float64))
    routing = SinkhornBASE()(logits)
    assert routing.gate.dtype == dtype
    (gradient,) = torch.autograd.grad(routing.gate.sum(), logits)
    assert gradient.isfinite().all()


def test_forbidden_expert_is_never_chosen():
    logits = torch.randn(40, 4)
    logits[:, 2] = -torch.inf
    logits[:10, 0] = -torch.inf
    plan = sinkhorn_log_plan(logits).exp()
    assert plan.isfinite().all()
    assert (plan[:, 2] == 0).all()
    assert (plan[:10, 0] == 0).all()
    assert (SinkhornBASE()(logits).assignment != 2).all()


def loop(capacity, training):
    def one(experts, x, logits, mask, model):
        gates = torch.zeros_like(logits)
        loads = [0] * K
        present = mask.nonzero().flatten().tolist()
        scores = logits.detach()[mask].numpy()
        if training and present:
            scores = pot_plan(scores)
        for i, row in zip(present, scores):
            e = int(row.argmax())
            loads[e] += 1
            if loads[e] <= capacity:
                gates[i, e] = torch.sigmoid(logits[i, e])
        return mixture_loop(experts, x, gates, None, model)

    return one


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2, 2), ()), ((2,), (2,))])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("capacity", [None, 3])
def test_equals_loop(capacity, training, batch, models, masked):
    router = SinkhornBASE(capacity=capacity, max_iterations=1000).train(training)
    assert_equals_loop(router, loop(capacity or 11, training), batch=batch, models=models, masked=masked)


def test_choices_are_nearly_balanced_where_argmax_is_not():
    logits = torch.randn(2000, 4) + torch.tensor([4.0, 2.0, 1.0, 0.0])
    router = SinkhornBASE()
    assert (router(logits).assignment[0].bincount() - 500).abs().max() < 50
    assert router.eval()(logits).assignment[0].bincount()[0] > 1500


def test_wrong_arguments():
    with pytest.raises(ValueError, match="max_iterations must be a positive int, but is 0"):
        SinkhornBASE(max_iterations=0)
    with pytest.raises(ValueError, match="logits must have shape"):
        SinkhornBASE()(torch.zeros(4))
