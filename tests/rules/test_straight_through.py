"""DenseMixer and Gumbel-softmax: sparse outputs, dense gradients, by loops over datapoints; and the dense mixture."""

import math

import pytest
import torch

from prob_moe.distributions.support import router_choices
from prob_moe.rules import DenseMixer, DenseMixture, GumbelSoftmax
from prob_moe.testing.statistics import deviation
from tests.rules.loops import K, assert_equals_loop, expert_output, make_experts, mixture_loop


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2,), ()), ((2,), (3,))])
@pytest.mark.parametrize("residual", [False, True])
def test_dense_mixture_equals_a_loop(batch, models, masked, residual):
    def one(experts, x, logits, mask, model):
        weights = torch.stack([row.exp() / row.exp().sum() * keep for row, keep in zip(logits, mask)])
        return mixture_loop(experts, x, weights, model=model)

    assert_equals_loop(DenseMixture(), one, batch=batch, models=models, masked=masked, residual=residual)


def straight_through_loop(num_selected, capacity):
    """DenseMixer, with the surrogate written out: the top experts' output, plus what has the gradient and is zero."""

    def one(experts, x, logits, mask, model):
        order = logits.argsort(-1, descending=True)
        kept, taken = [[] for _ in x], [0] * K
        for rank in range(num_selected):
            for i in range(len(x)):
                e = int(order[i, rank])
                if mask[i] and taken[e] < capacity:
                    taken[e] += 1
                    kept[i].append(e)
        rows = []
        for i in range(len(x)):
            p = logits[i].softmax(-1)
            row = 0 * expert_output(experts, x[i], 0, model) + 0 * p[0]
            for e in kept[i]:
                row = row + p[e].detach() * expert_output(experts, x[i], e, model)
            if kept[i]:
                for e in range(K):
                    row = row + (p[e] - p[e].detach()) * expert_output(experts, x[i], e, model).detach()
            rows.append(row)
        return torch.stack(rows)

    return one


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2,), ()), ((2,), (3,))])
@pytest.mark.parametrize(("num_selected", "capacity"), [(1, 11), (2, 11), (1, 3), (2, 5)])
def test_dense_mixer_equals_a_loop(batch, models, masked, num_selected, capacity):
    router = DenseMixer(num_selected=num_selected, capacity=capacity)
    assert_equals_loop(router, straight_through_loop(num_selected, capacity), batch=batch, models=models, masked=masked)


def test_dense_mixer_with_all_experts_is_the_dense_mixture():
    experts, x = make_experts(), torch.randn(7, 4, dtype=torch.float64)
    logits = torch.randn(7, K, dtype=torch.float64, requires_grad=True)
    results = []
    for router in (DenseMixture(), DenseMixer(num_selected=K)):
        output = router(logits).output(experts, x)
        inputs = [logits, *experts.parameters()]
        results.append([output, *torch.autograd.grad(output.square().sum(), inputs)])
    torch.testing.assert_close(*results)


def test_gumbel_softmax_equals_a_loop_given_its_noise():
    tau, n = 0.7, 11
    router, experts = GumbelSoftmax(temperature=tau, capacity=4), make_experts()
    logits = torch.randn(n, K, dtype=torch.float64, requires_grad=True)
    x = torch.randn(n, 4, dtype=torch.float64, requires_grad=True)
    probe = torch.randn(n, 4, dtype=torch.float64)
    routing = router(logits)
    output = routing.output(experts, x)
    inputs = [logits, x, *experts.parameters()]
    ours = torch.autograd.grad((output * probe).sum(), inputs)
    # The noise, up to a constant of the row, is what the soft sample has beyond the logits.
    perturbed = tau * routing.weights.detach().log()
    taken, total, expected, for_logits = [0] * K, 0.0, [], []
    for i in range(n):
        e = max(range(K), key=lambda j: perturbed[i, j])
        f = torch.stack([expert_output(experts, x[i], j) for j in range(K)])
        keep = taken[e] < 4
        taken[e] += 1
        expected.append(f[e] * keep)
        total = total + probe[i] @ f[e] * keep
        q = torch.tensor([math.exp(s / tau) for s in perturbed[i]], dtype=torch.float64)
        q = q / q.sum()
        slopes = f.detach() @ probe[i]
        for_logits.append(keep * q * (slopes - q @ slopes) / tau)
    torch.testing.assert_close(output, torch.stack(expected))
    torch.testing.assert_close(ours[0], torch.stack(for_logits))
    # Experts and datapoints see the hard choice alone.
    torch.testing.assert_close(ours[1:], torch.autograd.grad(total, inputs[1:]))


def test_gumbel_softmax_draws_from_the_router_at_any_temperature():
    logits = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64).expand(40_000, K)
    for temperature in (0.1, 3.0):
        routing = GumbelSoftmax(temperature=temperature)(logits)
        choices = router_choices(routing.sparse.assignment[0])
        assert torch.equal(choices, routing.weights.argmax(-1))
        assert deviation(torch.nn.functional.one_hot(choices, K).double(), logits[0].softmax(-1)).worst()[0] < 5


def bias_in_standard_errors(temperature, degree, num_draws=200_000):
    """Of the gradient for one datapoint whose experts put out 1, 2 and 4, with L(y) a power of y."""
    experts = make_experts(hidden=None, out=1)
    with torch.no_grad():
        experts.output.weight.zero_()
        experts.output.bias.copy_(torch.tensor([[1.0], [2.0], [4.0]]))
    logits = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64).repeat(num_draws, 1).requires_grad_()
    y = GumbelSoftmax(temperature=temperature)(logits).output(experts, torch.zeros(num_draws, 4, dtype=torch.float64))
    (gradients,) = torch.autograd.grad(y.pow(degree).sum(), logits)
    p, losses = logits[0].detach().softmax(-1), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).pow(degree)
    return deviation(gradients, p * (losses - p @ losses)).worst()[0]


def test_gumbel_softmax_is_exact_for_quadratic_losses_in_the_cold_and_biased_otherwise():
    assert bias_in_standard_errors(0.05, degree=1) < 5
    assert bias_in_standard_errors(0.05, degree=2) < 5
    assert bias_in_standard_errors(0.05, degree=3) > 6
    assert bias_in_standard_errors(1.0, degree=1) > 100


def test_gumbel_softmax_serves_the_best_expert():
    logits = torch.randn(9, K, dtype=torch.float64, requires_grad=True)
    routing = GumbelSoftmax().eval()(logits)
    assert torch.equal(routing.assignment[0], logits.argmax(-1))
    assert bool((routing.gate == 1).all())


def test_no_dense_pass_without_a_gradient(monkeypatch):
    experts, x = make_experts(), torch.randn(9, 4, dtype=torch.float64)
    monkeypatch.setattr(experts, "dense", lambda x: pytest.fail("dense pass"))
    with torch.no_grad():
        DenseMixer()(torch.randn(9, K, dtype=torch.float64, requires_grad=True)).output(experts, x)


def test_bad_options():
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            GumbelSoftmax(temperature=temperature)
    with pytest.raises(ValueError, match="load_balancing must be a weight >= 0"):
        GumbelSoftmax(load_balancing=-0.1)
    with pytest.raises(ValueError, match="num_selected must be a positive int"):
        DenseMixer(num_selected=0)
    with pytest.raises(ValueError, match="num_selected=4 exceeds the number of experts, 3"):
        DenseMixer(num_selected=4)(torch.zeros(5, 3))
