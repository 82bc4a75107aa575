"""SparseMixer: window, law of both draws, gates and gradients by their definitions, exactness by enumeration."""

import math

import pytest
import torch

from prob_moe.distributions.support import router_choices
from prob_moe.rules import SparseMixer, SparseMixerV2
from prob_moe.testing.statistics import deviation
from tests.rules.loops import K, make_experts

VERSIONS = [(SparseMixer, 1 / 2, 1 / 2, 2.0), (SparseMixerV2, 1 / 3, 1 / 4, 1.0)]
every_version = pytest.mark.parametrize(("mixer", "short", "full_probability", "slope"), VERSIONS)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5, math.inf])
def test_window_equals_a_loop(epsilon):
    logits = torch.cat([torch.randn(20, K), torch.randn(20, K) - 3, torch.zeros(1, K)]).double()
    windowed = SparseMixer(epsilon=epsilon).window(logits)
    for row, ours in zip(logits.tolist(), windowed.tolist()):
        largest = max(row)
        for s, kept in zip(row, ours):
            # The authors divide; at 0 / 0 they keep the expert.
            factor = max(abs(s), largest)
            inside = factor == 0 or (largest - s) / factor <= 2 * epsilon
            assert kept == (s if inside else -math.inf)


def test_forbidden_experts_stay_out_of_an_open_window():
    logits = torch.tensor([[0.0, -torch.inf, -1.0]]).expand(1000, K).requires_grad_()
    routing = SparseMixer(epsilon=math.inf)(logits)
    assert not bool((routing.assignment == 1).any())
    (gradient,) = torch.autograd.grad(routing.gate.sum(), logits)
    assert bool(gradient.isfinite().all())


@every_version
def test_law_of_the_draws(mixer, short, full_probability, slope):
    """Expert and step together, against their probabilities; expert 2 lies outside the window."""
    logits = torch.tensor([2.0, 1.5, 0.1], dtype=torch.float64).expand(60_000, K)
    routing = mixer(epsilon=0.2)(logits)
    p = logits[0, :2].softmax(-1)
    choices, steps = routing.assignment[0], routing.gate[0] / torch.cat([p, p.new_zeros(1)])[routing.assignment[0]]
    events = torch.stack(
        [(choices == 0) & (steps == 1), (choices == 1) & (steps == 1), (choices == 1) & ((steps - short).abs() < 1e-12)]
    )
    assert bool(events.any(0).all())
    expected = torch.stack([p[0], p[1] * full_probability, p[1] * (1 - full_probability)])
    assert deviation(events.T.double(), expected).worst()[0] < 5


@every_version
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("models", [(), (2,)])
def test_forward_and_gradient_equal_a_loop_given_the_draws(mixer, short, full_probability, slope, models, masked):
    router, experts = mixer(epsilon=1.0, capacity=4, load_balancing=0.0), make_experts(models)
    batch, n = (3, *models), 12
    logits = torch.randn(*batch, n, K, dtype=torch.float64, requires_grad=True)
    x = torch.randn(*batch, n, 4, dtype=torch.float64)
    probe = torch.randn(*batch, n, 4, dtype=torch.float64)
    mask = torch.rand(*batch, n) < 0.8 if masked else None
    routing = router(logits, mask=mask)
    choices, dropped = router_choices(routing.assignment).squeeze(-2), (routing.assignment < 0).squeeze(-2)
    output = routing.output(experts, x)
    (for_logits,) = torch.autograd.grad((output * probe).sum(), logits)
    outputs = experts.dense(x).detach()
    steps_seen = set()
    for index in torch.ones(*batch, n).nonzero().tolist():
        index = tuple(index)
        s, f = logits[index].detach(), outputs[index]
        inside = [j for j in range(K) if float((s.max() - s[j]) / max(s[j].abs(), s.max())) <= 2]
        total = sum(math.exp(s[j]) for j in inside)
        p = torch.tensor([math.exp(s[j]) / total if j in inside else 0.0 for j in range(K)], dtype=torch.float64)
        d = int(choices[index])
        if dropped[index]:
            assert not bool(output[index].any())
            assert not bool(for_logits[index].any())
            continue
        m = float(routing.gate.detach().squeeze(-2)[index] / p[d])
        steps_seen.add(round(m, 6))
        assert min(abs(m - 1), abs(m - short)) < 1e-12
        assert m > 0.99 or d != int(s.argmax())
        torch.testing.assert_close(output[index], m * p[d] * f[d])
        # Both versions send g to p_D without m, the first one doubled: ∂p_D/∂s_j = p_D (1[j = D] - p_j).
        g = float(probe[index] @ f[d])
        expected = torch.tensor([slope * g * p[d] * (float(j == d) - p[j]) for j in range(K)], dtype=torch.float64)
        torch.testing.assert_close(for_logits[index], expected)
    assert steps_seen == {1.0, round(short, 6)}


@every_version
def test_serving_takes_the_best_expert_with_a_full_gate(mixer, short, full_probability, slope):
    logits = torch.randn(50, K, dtype=torch.float64)
    router = mixer(epsilon=1.0).eval()
    routing = router(logits)
    assert torch.equal(routing.assignment[0], logits.argmax(-1))
    torch.testing.assert_close(routing.gate[0], router.window(logits).softmax(-1).amax(-1))


@pytest.mark.parametrize(
    ("mixer", "degree", "part"), [(SparseMixer, 2, "both"), (SparseMixerV2, 3, "score"), (SparseMixerV2, 2, "both")]
)
def test_exactness_where_the_argmax_is_not_drawn(mixer, degree, part):
    """
    The contribution of one expert to the expected gradient, averaged over the step, for a polynomial loss: the first
    version has both parts for degree 2, the second the score part for degree 3, and not both.
    """
    router = mixer(epsilon=math.inf)
    logits = torch.tensor([[1.0, 0.5, -0.3]], dtype=torch.float64, requires_grad=True)
    coefficients, f, expert = [0.7, -0.4, 0.9], 1.3, torch.tensor([1])

    def loss(y):
        return sum(c * y**power for power, c in enumerate(coefficients[:degree], 1))

    expected = torch.zeros_like(logits)
    for full, probability in ((True, router.full_probability), (False, 1 - router.full_probability)):
        gate = router.gate(logits, expert, torch.tensor([full]))
        expected += probability * torch.autograd.grad(loss(gate * f).sum(), logits)[0]
    p = logits.softmax(-1)[0, 1]
    # The draw comes with probability p, so the part of the objective's gradient to compare with is divided by it.
    score = torch.autograd.grad(p, logits, retain_graph=True)[0] * loss(p * f).detach() / p.detach()
    both = score + torch.autograd.grad(loss(p * f), logits)[0]
    exact = torch.allclose(expected, score if part == "score" else both, rtol=1e-12)
    assert exact == ((mixer, part) != (SparseMixerV2, "both"))


def test_loss_is_of_the_window():
    logits = torch.randn(9, K, dtype=torch.float64)
    router = SparseMixer(epsilon=0.3, load_balancing=0.5).eval()
    windowed = router.window(logits)
    shares = torch.stack([(logits.argmax(-1) == e).double().mean() for e in range(K)])
    torch.testing.assert_close(router(logits).loss, 0.5 * K * (shares * windowed.softmax(-1).mean(0)).sum())


def test_bad_epsilon():
    with pytest.raises(ValueError, match="epsilon must be a relative width"):
        SparseMixer(epsilon=-0.1)
