"""GShard's top-2: all ways to keep second choices, against loops; the law of the draw; its loss."""

from itertools import product

import pytest
import torch
from torch import Tensor

from prob_moe.rules import GShard, Switch, TopGates
from prob_moe.testing.statistics import deviation
from tests.rules.loops import D, K, assert_equals_loop, make_experts, mixture_loop

N = 3
#: who keeps the second choice, (2^n, n)
PATTERNS = torch.tensor(list(product([False, True], repeat=N)))


class Keeping(GShard):
    """The second choices that are kept are given."""

    pattern = PATTERNS

    def keeps(self, gate: Tensor) -> Tensor:  # type: ignore[override]
        return self.pattern.expand(gate.shape)


def gates_of(logits: Tensor, keeps: list[bool], capacity: int) -> tuple[Tensor, Tensor]:
    """Gates of one batch element, (n, k), and of all second choices, (n), by the definition."""
    gates, loads = torch.zeros_like(logits), [0] * K
    ranked = logits.argsort(-1, descending=True)[:, :2].tolist()
    pairs = [torch.stack([torch.exp(logits[i, a]), torch.exp(logits[i, b])]) for i, (a, b) in enumerate(ranked)]
    shares = [pair / pair.sum() for pair in pairs]
    for rank in range(2):
        for i, keep in enumerate(keeps):
            e = ranked[i][rank]
            if rank == 1 and not keep:
                continue
            loads[e] += 1
            if loads[e] <= capacity:
                gates[i, e] = shares[i][rank]
    return gates, torch.stack([share[1] for share in shares])


@pytest.mark.parametrize("capacity", [1, 2, 9])
def test_the_expected_gradient_over_all_draws_is_that_of_its_formula(capacity: int) -> None:
    """And it is not that of its expected loss, in which the probability of keeping depends on the router too."""
    experts, x = make_experts(), torch.randn(N, D, dtype=torch.float64)
    logits = torch.randn(N, K, dtype=torch.float64, requires_grad=True)
    rule = Keeping(load_balancing=0.0, capacity=capacity)
    losses = rule(logits.expand(len(PATTERNS), N, K)).output(experts, x).square().sum((-2, -1))
    parts = [gates_of(logits, pattern.tolist(), capacity) for pattern in PATTERNS]
    outputs = torch.stack([mixture_loop(experts, x, gates) for gates, _ in parts])
    by_hand = outputs.square().sum((-2, -1))
    keep = 2 * parts[0][1]
    chances = torch.where(PATTERNS, keep, 1 - keep).prod(-1)
    torch.testing.assert_close(chances.sum(), torch.ones((), dtype=torch.float64))

    def gradient(weights: Tensor, losses: Tensor) -> Tensor:
        return torch.autograd.grad((weights * losses).sum(), logits, retain_graph=True)[0]

    expected = gradient(chances.detach(), by_hand)
    torch.testing.assert_close(gradient(chances.detach(), losses), expected, rtol=1e-10, atol=1e-12)
    assert (gradient(chances, by_hand) - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2,), (2,))])
def test_in_serving_it_is_top_2_gating(batch: tuple[int, ...], models: tuple[int, ...], masked: bool) -> None:
    logits = torch.randn(*batch, *models, 11, K)
    mask = torch.rand(*batch, *models, 11) < 0.7 if masked else None
    ours, top = GShard(capacity=4).eval()(logits, mask=mask), TopGates(capacity=4)(logits, mask=mask)
    assert torch.equal(ours.assignment, top.assignment)
    assert torch.equal(ours.gate, top.gate)


def test_training_equals_a_loop_given_its_draw() -> None:
    class Half(Keeping):
        pattern = torch.arange(11) % 2 == 0

    def one(experts, x, logits, mask, model):
        return mixture_loop(experts, x, gates_of(logits, Half.pattern.tolist(), 5)[0], None, model)

    assert_equals_loop(Half(load_balancing=0.0, capacity=5), one, batch=(2,))


def test_the_second_choice_is_kept_with_twice_its_gate() -> None:
    logits = torch.tensor([1.0, 0.3, -2.0], dtype=torch.float64)
    routing = GShard()(logits.expand(40_000, K))
    kept = (routing.assignment[1] >= 0).double().unsqueeze(-1)
    gate = routing.gate[1, :1]
    assert deviation(kept, 2 * gate).worst()[0] < 5
    assert deviation(kept, gate).worst()[0] > 5
    assert (routing.assignment[0] == 0).all()


def test_a_second_choice_that_is_not_kept_takes_no_place() -> None:
    class Last(Keeping):
        pattern = torch.tensor([False, True])

    logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    assert Last(capacity=1)(logits).assignment.tolist() == [[0, ~0], [~1, 1]]


def test_the_loss_counts_first_choices() -> None:
    logits = torch.randn(2, 9, K, dtype=torch.float64)
    mask = torch.rand(2, 9) < 0.7
    ours = GShard(load_balancing=0.5, capacity=1)(logits, mask=mask).loss
    torch.testing.assert_close(ours, Switch(load_balancing=0.5, z_loss=0.0)(logits, mask=mask).loss)


def test_one_expert_that_is_allowed_is_the_output() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    for rule in (GShard(), GShard().eval()):
        routing = rule(logits)
        assert routing.assignment[0].item() == 0
        assert routing.assignment[1].item() < 0
        assert routing.gate[:, 0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("rule", "columns", "message"),
    [
        (lambda: GShard(load_balancing=-1.0), 3, "load_balancing must be a weight >= 0, got -1.0"),
        (GShard, 1, "num_selected=2 exceeds the number of experts, 1"),
    ],
)
def test_wrong_arguments(rule, columns, message) -> None:
    with pytest.raises(ValueError, match=message):
        rule()(torch.zeros(5, columns))
