"""The router by sparse transport against loops, and its gradient against finite differences."""

import pytest
import torch

from prob_moe.numerics import solve_assignment, sparse_transport
from prob_moe.rules import SparsityConstrainedTransport
from tests.rules.loops import D, K, assert_equals_loop, make_experts, mixture_loop


def loop(selected, capacity, gate):
    def one(experts, x, logits, mask, model):
        p = torch.softmax(logits, -1)
        present = mask.nonzero().flatten().tolist()
        plan = sparse_transport(p[present], selected, regularization=0.1).plan
        gates = torch.zeros_like(logits)
        loads = [0] * K
        for rank in range(selected):
            for row, i in enumerate(present):
                e = sorted(range(K), key=lambda e: -plan[row, e].item())[rank]
                if plan[row, e] > 0:
                    loads[e] += 1
                    if loads[e] <= capacity:
                        gates[i, e] = plan[row, e] if gate == "plan" else p[i, e]
        return mixture_loop(experts, x, gates, None, model)

    return one


@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2,), (2,))])
@pytest.mark.parametrize(
    ("selected", "capacity", "gate", "masked"),
    [
        (3, None, "plan", False),
        (3, None, "plan", True),
        (3, 5, "plan", True),
        (2, 6, "softmax", False),
        (1, None, "softmax", False),  # 12 datapoints: the plan is the matching
    ],
)
def test_equals_loop(selected, capacity, gate, masked, batch, models):
    router = SparsityConstrainedTransport(num_selected=selected, capacity=capacity, gate=gate)
    one = loop(selected, capacity or 12, gate)
    assert_equals_loop(router, one, batch=batch, models=models, masked=masked, n=12)


def test_gradient_is_the_derivative_of_the_output():
    experts, x = make_experts(), torch.randn(9, D, dtype=torch.float64)
    logits = torch.randn(9, K, dtype=torch.float64, requires_grad=True)
    for gate in ("plan", "softmax"):
        router = SparsityConstrainedTransport(num_selected=K, gate=gate)
        assert torch.autograd.gradcheck(lambda s, r=router: r(s).output(experts, x).square().sum(), logits, atol=1e-6)


def test_one_expert_is_the_balanced_matching_gated_by_its_probability():
    logits = torch.randn(12, K, dtype=torch.float64)
    routing = SparsityConstrainedTransport(num_selected=1, gate="softmax")(logits)
    p = logits.softmax(-1)
    expected = solve_assignment(p, 4).assignment
    assert torch.equal(routing.assignment[0], expected)
    torch.testing.assert_close(routing.gate[0], p.gather(-1, expected.unsqueeze(-1)).squeeze(-1))


def test_padding_takes_nothing_and_reaches_nothing():
    logits = torch.randn(9, K)
    mask = torch.arange(9) % 2 == 0
    logits[~mask] = torch.nan
    logits.requires_grad_()
    routing = SparsityConstrainedTransport(num_selected=K)(logits, mask=mask)
    assert (routing.assignment[:, ~mask] == -1).all()
    totals = torch.zeros(K)
    for row in range(K):
        here = routing.assignment[row] >= 0
        totals = totals.index_add(0, routing.assignment[row][here], routing.gate[row][here].detach())
    torch.testing.assert_close(totals, torch.full((K,), 5 / 3))
    (gradient,) = torch.autograd.grad(routing.gate.square().sum(), logits)
    assert (gradient[~mask] == 0).all()
    assert gradient.isfinite().all()
    assert (gradient[mask] != 0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_extreme_logits(scale, dtype):
    logits = (torch.randn(20, 4).sign() * scale).to(dtype)
    logits[:5, 3] = -torch.inf
    logits.requires_grad_()
    routing = SparsityConstrainedTransport()(logits)
    assert routing.gate.dtype == dtype
    assert routing.gate.isfinite().all()
    (gradient,) = torch.autograd.grad(routing.gate.sum(), logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_selected": 0}, "num_selected must be a positive int"),
        ({"num_selected": 1}, 'give gate="softmax", or select more'),
        ({"num_selected": 4}, "num_selected=4 exceeds the number of experts, 3"),
        ({"gate": "hard"}, 'gate must be "plan" or "softmax", but is \'hard\''),
        ({"regularization": -1.0}, "regularization must be positive and finite, but is -1.0"),
        ({"max_iterations": 0}, "max_iterations must be a positive int"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SparsityConstrainedTransport(**options)(torch.zeros(5, K))
