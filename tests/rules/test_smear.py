"""SMEAR against merging the parameters of every datapoint one by one."""

import pytest
import torch

from prob_moe.rules import SMEAR
from tests.rules.loops import D, K, assert_equals_loop, make_experts, mixture_loop


def merged_output(experts, x, weights, model):
    """One datapoint through one expert of averaged parameters."""

    def average(parameter):
        return sum(weights[e] * parameter[(*model, e)] for e in range(len(weights)))

    inputs = x
    for linear in (experts.hidden, experts.output):
        if linear is not None:
            x = x @ average(linear.weight)
            x = x if linear.bias is None else x + average(linear.bias)
            x = x if linear is experts.output else experts.activation(x)
    return inputs + x if experts.residual else x


def loop(shared):
    def one(experts, x, logits, mask, model):
        mean = sum((row for row, there in zip(logits, mask) if there), torch.zeros(K, dtype=torch.float64))
        rows = []
        for i in range(len(x)):
            weights = torch.softmax(mean / mask.sum() if shared else logits[i], -1)
            row = merged_output(experts, x[i], weights, model)
            rows.append(row if mask[i] else 0 * row)
        return torch.stack(rows)

    return one


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2, 2), ()), ((2,), (2,)), ((), (2, 2))])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_loop(shared, batch, models, masked):
    assert_equals_loop(SMEAR(shared=shared), loop(shared), batch=batch, models=models, masked=masked)


@pytest.mark.parametrize("options", [{"residual": True}, {"hidden": None, "out": 2}, {"bias": False}, {"n": 1}])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_loop_with_other_experts(shared, options):
    assert_equals_loop(SMEAR(shared=shared), loop(shared), **options)


def test_linear_experts_make_it_the_dense_mixture():
    x, logits = torch.randn(5, D, dtype=torch.float64), torch.randn(5, K, dtype=torch.float64)
    for hidden, same in ((None, True), (6, False)):
        experts = make_experts(hidden=hidden)
        ours = SMEAR()(logits).output(experts, x)
        assert torch.allclose(ours, mixture_loop(experts, x, logits.softmax(-1))) == same


def test_gradient_is_the_derivative_of_the_output():
    experts, x = make_experts(), torch.randn(4, D, dtype=torch.float64)
    logits = torch.randn(4, K, dtype=torch.float64, requires_grad=True)
    for router in (SMEAR(), SMEAR(shared=True)):
        assert torch.autograd.gradcheck(lambda s, r=router: r(s).output(experts, x).square().sum(), logits)


@pytest.mark.parametrize("shared", [False, True])
def test_padding_reaches_nothing(shared):
    experts, x = make_experts(), torch.randn(4, D, dtype=torch.float64)
    logits = torch.randn(4, K, dtype=torch.float64)
    mask = torch.tensor([True, False, True, False])
    logits[~mask], x[~mask] = torch.nan, torch.nan
    output = SMEAR(shared=shared)(logits, mask=mask).output(experts, x)
    assert (output[~mask] == 0).all()
    alone = SMEAR(shared=shared)(logits[mask]).output(experts, x[mask])
    torch.testing.assert_close(output[mask], alone)
    nobody = SMEAR(shared=shared)(logits, mask=torch.zeros(4, dtype=torch.bool)).output(experts, x)
    assert (nobody == 0).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"x must have shape \(6, 4\)"):
        SMEAR()(torch.zeros(6, K)).output(make_experts(), torch.zeros(6, D + 1, dtype=torch.float64))
