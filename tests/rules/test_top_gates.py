"""Top-m gating against loops and values by hand; its loss against sums, its gradient against finite differences."""

import math

import pytest
import torch

from prob_moe.rules import DenseMixture, Switch, TopGates
from tests.rules.loops import D, K, assert_equals_loop, make_experts, mixture_loop


def loop(selected, capacity):
    def one(experts, x, logits, mask, model):
        gates, loads = torch.zeros_like(logits), [0] * K
        ranked = [sorted(range(K), key=lambda e: -logits[i, e].item())[:selected] for i in range(len(x))]
        for rank in range(selected):
            for i in mask.nonzero().flatten().tolist():
                e = ranked[i][rank]
                loads[e] += 1
                if loads[e] <= capacity:
                    gates[i, e] = 1 / sum(torch.exp(logits[i, j] - logits[i, e]) for j in ranked[i])
        return mixture_loop(experts, x, gates, None, model)

    return one


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2, 2), ()), ((2,), (2,))])
@pytest.mark.parametrize(("selected", "capacity"), [(1, 3), (2, None), (2, 5), (3, 4)])
def test_equals_loop(selected, capacity, batch, models, masked):
    rule = TopGates(num_selected=selected, capacity=capacity)
    assert_equals_loop(rule, loop(selected, capacity or 11), batch=batch, models=models, masked=masked)


def test_equals_loop_with_other_experts():
    assert_equals_loop(TopGates(capacity=4), loop(2, 4), residual=True)
    assert_equals_loop(TopGates(), loop(2, 11), hidden=None, out=2)


def test_the_gates_of_those_that_process_are_not_renormalised_again():
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]], dtype=torch.float64).log()
    routing = TopGates(capacity=1)(logits)
    assert routing.assignment.tolist() == [[0, ~0], [1, 2]]
    torch.testing.assert_close(routing.gate, torch.tensor([[5 / 8, 2 / 3], [3 / 8, 1 / 3]], dtype=torch.float64))
    experts, x = make_experts(), torch.randn(2, D, dtype=torch.float64)
    torch.testing.assert_close(routing.output(experts, x)[1], experts.dense(x)[1, 2] / 3)


def test_first_choices_take_places_before_second_ones():
    """Whoever comes first: the second choice of the first datapoint waits for the first choice of the last one."""
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 2.0, 1.0]])
    assert TopGates(capacity=1)(logits).assignment.tolist() == [[0, 2, 1], [~1, ~1, ~2]]
    # ceil(n / k), whatever m; a factor of m is for all choices of a balanced batch.
    assert (TopGates(capacity_factor=1.0)(logits).assignment[1] < 0).all()
    assert (TopGates(capacity_factor=2.0)(logits).assignment[:, [0, 2]] >= 0).all()


def test_all_experts_are_the_dense_mixture():
    experts, logits, x = make_experts(), torch.randn(7, K).double(), torch.randn(7, D, dtype=torch.float64)
    ours, dense = TopGates(num_selected=K)(logits), DenseMixture()(logits)
    torch.testing.assert_close(ours.output(experts, x), dense.output(experts, x))


@pytest.mark.parametrize("selected", [1, 2, 3])
def test_gradient_is_the_derivative_of_output_and_loss(selected):
    experts, x = make_experts(), torch.randn(7, D, dtype=torch.float64)
    # Logits of a datapoint are half apart or more, so no choice changes within a finite difference.
    rows = [torch.randperm(K) + 0.5 * torch.rand(K) for _ in range(7)]
    logits = torch.stack(rows).double().requires_grad_()
    rule = TopGates(num_selected=selected, load_balancing=0.7, capacity=5)

    def objective(s):
        routing = rule(s)
        return routing.output(experts, x).square().sum() + routing.loss

    assert torch.autograd.gradcheck(objective, logits)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("selected", [1, 2, 3])
def test_loss_counts_all_choices(selected, masked):
    logits = torch.randn(2, 9, K, dtype=torch.float64)
    mask = torch.rand(2, 9) < 0.7 if masked else None
    # What capacity drops counts among the choices.
    loss = TopGates(num_selected=selected, load_balancing=0.5, capacity=1)(logits, mask=mask).loss
    for b in range(2):
        rows = [logits[b, i] for i in range(9) if mask is None or mask[b, i]]
        chosen = [e for row in rows for e in row.argsort(descending=True)[:selected].tolist()]
        share = [chosen.count(e) / len(chosen) for e in range(K)]
        mean = [sum(float(row.softmax(-1)[e]) for row in rows) / len(rows) for e in range(K)]
        assert float(loss[b]) == pytest.approx(0.5 * K * sum(f * p for f, p in zip(share, mean)))
    if selected == 1:
        torch.testing.assert_close(loss, Switch(load_balancing=0.5, z_loss=0.0)(logits, mask=mask).loss)
    if selected == K:
        torch.testing.assert_close(loss, torch.full((2,), 0.5, dtype=torch.float64))


def test_forbidden_experts_take_no_place_no_gate_and_no_load():
    logits = torch.tensor([[0.0, -torch.inf], [1.0, 0.0]], dtype=torch.float64)
    routing = TopGates(load_balancing=1.0, capacity=1)(logits)
    # The second choice of the last datapoint gets the place that the first one's, forbidden, does not take.
    assert routing.assignment.tolist() == [[0, ~0], [~1, 1]]
    p = 1 / (1 + math.exp(-1))
    torch.testing.assert_close(routing.gate, torch.tensor([[1, p], [0, 1 - p]], dtype=torch.float64))
    # Loads of 2 and 1, of four choices; k = 2.
    assert float(routing.loss) == pytest.approx(2 * (2 / 4 * (1 + p) / 2 + 1 / 4 * (1 - p) / 2))


def test_gates_of_given_experts():
    logits = torch.randn(2, 5, K, dtype=torch.float64).requires_grad_()
    choices = torch.stack([torch.rand(2, 5, K).argsort(-1)[..., j] for j in range(2)], -2)
    gate, carry = TopGates().gates(logits, choices)
    p = logits.softmax(-1).mT.gather(-2, choices)
    torch.testing.assert_close(gate, p / p.sum(-2, keepdim=True))
    assert carry is None


def test_gates_of_given_experts_that_are_forbidden_by_now():
    logits = torch.tensor([[-torch.inf, -torch.inf, 0.0], [-torch.inf, 1.0, 0.0]]).requires_grad_()
    gate, _ = TopGates().gates(logits, torch.tensor([[0, 0], [1, 1]]))
    assert gate.tolist() == [[0, 0], [0, 1]]
    assert (torch.autograd.grad(gate[:, 0].sum(), logits)[0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_extreme_logits(scale, dtype):
    logits = (torch.randn(20, 4).sign() * scale).to(dtype)
    logits[:, 3] = -torch.inf
    logits.requires_grad_()
    routing = TopGates(num_selected=4)(logits)
    assert (routing.assignment[-1] == ~3).all()
    assert routing.loss.dtype == routing.gate.dtype == dtype
    assert (routing.gate.sum(-2) - 1).abs().max() < 4 * torch.finfo(dtype).eps
    (gradient,) = torch.autograd.grad(routing.gate.square().sum() + routing.loss, logits)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_selected": 0}, "num_selected must be a positive int"),
        ({"load_balancing": -1.0}, "load_balancing must be a weight >= 0, got -1.0"),
        ({"num_selected": 4}, "num_selected=4 exceeds the number of experts, 3"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message) as error:
        TopGates(**options)(torch.zeros(5, K))
    assert "\n" not in str(error.value)
