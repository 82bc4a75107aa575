"""Soft MoE against loops over slots and datapoints."""

import pytest
import torch

from prob_moe.rules import SoftMoE
from tests.rules.loops import D, K, assert_equals_loop, expert_output, make_experts


def loop(slots):
    def one(experts, x, logits, mask, model):
        present = mask.nonzero().flatten().tolist()
        outputs = []
        for column in range(K * slots):
            share = torch.softmax(torch.stack([logits[i, column] for i in present]), 0)
            mixture = sum(share[place] * x[i] for place, i in enumerate(present))
            outputs.append(expert_output(experts, mixture, column // slots, model))
        rows = []
        for i in range(len(x)):
            share = torch.softmax(logits[i], 0)
            row = sum(share[column] * out for column, out in enumerate(outputs))
            rows.append(row if i in present else 0 * row)
        return torch.stack(rows)

    return one


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2, 2), ()), ((2,), (2,))])
@pytest.mark.parametrize("slots", [1, 3])
def test_equals_loop(slots, batch, models, masked):
    router = SoftMoE(slots_per_expert=slots)
    assert_equals_loop(router, loop(slots), batch=batch, models=models, masked=masked, columns=K * slots)


def test_equals_loop_with_other_experts():
    assert_equals_loop(SoftMoE(), loop(1), residual=True)
    assert_equals_loop(SoftMoE(), loop(1), hidden=None, out=2)


def test_gradient_is_the_derivative_of_the_output():
    experts, x = make_experts(), torch.randn(4, D, dtype=torch.float64)
    logits = torch.randn(4, 2 * K, dtype=torch.float64, requires_grad=True)
    router = SoftMoE(slots_per_expert=2)
    assert torch.autograd.gradcheck(lambda s: router(s).output(experts, x).square().sum(), logits)


def test_padding_reaches_nothing():
    experts, x = make_experts(), torch.randn(5, D, dtype=torch.float64)
    logits = torch.randn(5, K, dtype=torch.float64)
    mask = torch.tensor([True, False, True, True, False])
    logits[~mask], x[~mask] = torch.nan, torch.nan
    logits.requires_grad_()
    output = SoftMoE()(logits, mask=mask).output(experts, x)
    assert (output[~mask] == 0).all()
    torch.testing.assert_close(output[mask], SoftMoE()(logits[mask]).output(experts, x[mask]))
    for present in (mask, torch.zeros(5, dtype=torch.bool)):
        output = SoftMoE()(logits, mask=present).output(experts, x)
        (gradient,) = torch.autograd.grad(output.sum(), logits)
        assert gradient.isfinite().all()
        assert output.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_sum_to_one_for_extreme_logits(dtype):
    routing = SoftMoE(slots_per_expert=2)((torch.randn(8, 6) * 1e4).to(dtype))
    for weights, dims in ((routing.dispatch, -3), (routing.combine, (-1, -2))):
        total = weights.sum(dims)
        torch.testing.assert_close(total, torch.ones_like(total))
        assert weights.dtype == dtype


def test_every_datapoint_reaches_every_output():
    experts, x = make_experts(), torch.randn(5, D, dtype=torch.float64, requires_grad=True)
    output = SoftMoE()(torch.randn(5, K, dtype=torch.float64)).output(experts, x)
    (gradient,) = torch.autograd.grad(output[0].sum(), x)
    assert (gradient[1:].abs().sum(-1) > 0).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="slots_per_expert must be a positive int, but is 0"):
        SoftMoE(slots_per_expert=0)
    with pytest.raises(ValueError, match=r"k \* slots_per_expert columns.*\(5, 3\).*slots_per_expert=2"):
        SoftMoE(slots_per_expert=2)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"x must have shape \(5, 4\)"):
        SoftMoE()(torch.zeros(5, K)).output(make_experts(), torch.zeros(4, D, dtype=torch.float64))
