"""Expert choice against a sort, and against loops."""

import pytest
import torch

from prob_moe.rules import ExpertChoice
from tests.rules.loops import D, K, assert_equals_loop, make_experts, mixture_loop


def taken(p, mask, capacity):
    """bool (n, k): whether expert j takes datapoint i, by sorting."""
    chosen = torch.zeros_like(p, dtype=torch.bool)
    for e in range(p.shape[1]):
        present = [i for i in range(p.shape[0]) if mask[i]]
        for i in sorted(present, key=lambda i: (-p[i, e].item(), i))[:capacity]:
            chosen[i, e] = True
    return chosen


def loop(capacity):
    def one(experts, x, logits, mask, model):
        p = torch.softmax(logits, -1)
        return mixture_loop(experts, x, torch.where(taken(p, mask, capacity), p, 0.0), None, model)

    return one


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2, 2), ()), ((2,), (2,))])
@pytest.mark.parametrize("capacity", [1, 4, 20])
def test_equals_loop(capacity, batch, models, masked):
    assert_equals_loop(ExpertChoice(capacity=capacity), loop(capacity), batch=batch, models=models, masked=masked)


def test_equals_loop_with_other_experts():
    assert_equals_loop(ExpertChoice(), loop(8), residual=True)  # ceil(2 · 11 / 3)
    assert_equals_loop(ExpertChoice(capacity_factor=0.5), loop(2), hidden=None, out=2)


def test_gradient_is_the_derivative_of_the_output():
    experts, x = make_experts(), torch.randn(7, D, dtype=torch.float64)
    logits = torch.randn(7, K, dtype=torch.float64, requires_grad=True)
    router = ExpertChoice(capacity=3)
    assert torch.autograd.gradcheck(lambda s: router(s).output(experts, x).square().sum(), logits)


def test_experts_are_full_and_datapoints_are_not():
    routing = ExpertChoice(capacity=5)(torch.randn(20, 4))
    assert routing.sources.shape == (4, 5)
    assert all(len(set(row)) == 5 for row in routing.sources.tolist())
    times = routing.sources.flatten().bincount(minlength=20)
    assert times.max() > 1
    assert times.min() == 0


def test_ties_go_to_the_first():
    assert (ExpertChoice(capacity=3)(torch.zeros(10, 2)).sources == torch.arange(3)).all()


def test_padding_is_never_taken_and_reaches_nothing():
    experts, x = make_experts(), torch.randn(6, D, dtype=torch.float64)
    logits = torch.randn(6, K, dtype=torch.float64)
    mask = torch.tensor([False, True, True, False, True, False])
    logits[~mask], x[~mask] = torch.nan, torch.nan
    logits.requires_grad_()
    x.requires_grad_()
    routing = ExpertChoice(capacity=4)(logits, mask=mask)
    output = routing.output(experts, x)
    assert (routing.sources == -1).sum() == K
    assert (output[~mask] == 0).all()
    for gradient in torch.autograd.grad(output.sum(), [logits, x, *experts.parameters()]):
        assert gradient.isfinite().all()
    nobody = ExpertChoice()(logits, mask=torch.zeros(6, dtype=torch.bool))
    assert (nobody.output(experts, x) == 0).all()


def test_a_later_datapoint_changes_an_earlier_output():
    logits, x = torch.randn(6, K, dtype=torch.float64), torch.randn(6, D, dtype=torch.float64)
    experts, router = make_experts(), ExpertChoice(capacity=1)
    before = router(logits).output(experts, x)
    changed = logits.clone()
    changed[5] = torch.tensor([50.0, 0.0, 0.0])
    earlier = int(logits.softmax(-1)[:, 0].argmax())
    assert earlier < 5
    assert not torch.equal(before[earlier], router(changed).output(experts, x)[earlier])


def test_wrong_arguments():
    routing = ExpertChoice()(torch.zeros(6, K))
    with pytest.raises(ValueError, match=r"x must have shape \(6, 4\)"):
        routing.output(make_experts(), torch.zeros(5, D, dtype=torch.float64))
    with pytest.raises(ValueError, match="capacity must be a positive int"):
        ExpertChoice(capacity=0)
