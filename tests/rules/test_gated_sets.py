"""Gated random sets: every set, against the formula with enumerated inclusion probabilities; the law of the draw."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor

from prob_moe.rules import DenseMixture, GatedSets
from prob_moe.testing.statistics import deviation
from tests.rules.loops import D, K, make_experts

M = 2


def every_set(num_experts: int) -> Tensor:
    """(sets, m)."""
    return torch.tensor(list(combinations(range(num_experts), M)))


def law(logits: Tensor) -> Tensor:
    """Of every set, by the products of its odds, (*, k) -> (*, sets)."""
    products = torch.stack([logits.softmax(-1)[..., list(chosen)].prod(-1) for chosen in every_set(logits.shape[-1])])
    return (products / products.sum(0)).movedim(0, -1)


class Given(GatedSets):
    """One set for every batch element."""

    def choose(self, logits: Tensor) -> Tensor:
        return every_set(logits.shape[-1])[:, :, None].expand(-1, -1, logits.shape[-2])


def test_the_expected_gradient_over_all_sets_is_that_of_its_formula() -> None:
    experts, x = make_experts(), torch.randn(5, D, dtype=torch.float64)
    logits = torch.randn(5, K, dtype=torch.float64, requires_grad=True)
    sets = every_set(K)
    rule = Given()
    outputs = rule(logits.expand(len(sets), 5, K)).output(experts, x)
    chances = law(logits)
    ours = torch.autograd.grad((chances.detach().mT.unsqueeze(-1) * outputs.square()).sum(), logits, retain_graph=True)
    # By hand: inclusion probabilities are sums over the sets, and every member's gate is p (1 + mu - mu).
    inclusion = torch.stack([chances[:, [j in chosen for chosen in sets.tolist()]].sum(-1) for j in range(K)], -1)
    p, dense = logits.softmax(-1), experts.dense(x)
    gates = p * (1 + inclusion - inclusion.detach())
    by_hand = torch.zeros((), dtype=torch.float64)
    for number, chosen in enumerate(sets.tolist()):
        y = sum(gates[:, j, None] * dense[:, j] for j in chosen)
        by_hand = by_hand + (chances[:, number].detach() * y.square().sum(-1)).sum()
        torch.testing.assert_close(outputs[number], y)
    expected = torch.autograd.grad(by_hand, logits)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def relative_error(scale: float, gate: Callable[[Tensor], Tensor], members_only: bool, straight: bool = True) -> float:
    """Median over 200 problems of the distance between expected gradient and that of E_S[L], k = 8, squared error."""
    k, generator = 8, torch.Generator().manual_seed(0)
    logits = scale * torch.randn(200, k, generator=generator, dtype=torch.float64)
    outputs, target = (torch.randn(200, rows, 16, generator=generator, dtype=torch.float64) for rows in (k, 1))
    sets = every_set(k)
    member = torch.zeros(len(sets), k, dtype=torch.float64).scatter(-1, sets, 1.0)

    def gradient(surrogate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        leaf = logits.clone().requires_grad_()
        chances, counts = surrogate(leaf)
        losses = ((counts * gate(leaf).unsqueeze(-2)) @ outputs - target).square().sum(-1) / 2
        return torch.autograd.grad((chances * losses).sum(), leaf)[0]

    def estimate(leaf: Tensor) -> tuple[Tensor, Tensor]:
        chances = law(leaf)
        inclusion = (chances @ member).unsqueeze(-2)
        change = (inclusion - inclusion.detach()) * straight
        return chances.detach(), member + (change * member if members_only else change)

    exact = gradient(lambda leaf: (law(leaf), member))
    error = gradient(estimate) - exact
    return float((error.norm(dim=-1) / exact.norm(dim=-1)).median())


def test_how_far_the_expected_gradient_is_off() -> None:
    """With gates p it is close, without them far; and farther without the inclusion probabilities than with them."""

    def p(logits: Tensor) -> Tensor:
        return logits.softmax(-1)

    def mean_of_two(logits: Tensor) -> Tensor:
        return torch.full_like(logits, 0.5)

    for scale in (1.0, 2.0, 3.0):
        assert 0.02 < relative_error(scale, p, members_only=False) < 0.13
        assert 0.12 < relative_error(scale, p, members_only=True) < 0.2
        assert relative_error(scale, p, members_only=True, straight=False) > 0.2
        assert relative_error(scale, mean_of_two, members_only=False) > 0.3


def test_the_sets_are_conditional_poisson_and_not_those_of_gumbel_top_2() -> None:
    logits = torch.tensor([1.5, 0.0, -1.0], dtype=torch.float64)
    rule = GatedSets()
    drawn = rule.choose(logits.expand(40_000, K))
    assert (logits[drawn[0]] > logits[drawn[1]]).all()
    seen = torch.stack([(drawn.sort(0).values == chosen.unsqueeze(-1)).all(0) for chosen in every_set(K)], -1).double()
    p = logits.softmax(-1)
    gumbel = torch.stack([p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b])) for a, b in every_set(K).tolist()])
    assert deviation(seen, law(logits)).worst()[0] < 5
    assert deviation(seen, gumbel).worst()[0] > 5


def test_all_experts_are_the_dense_mixture() -> None:
    experts, logits, x = make_experts(), torch.randn(7, K).double().requires_grad_(), torch.randn(7, D).double()
    outputs = [rule(logits).output(experts, x) for rule in (GatedSets(num_selected=K), DenseMixture())]
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), logits)[0] for out in outputs))


def test_where_no_more_than_m_are_allowed_these_are_the_set() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, 0.0, -torch.inf]], dtype=torch.float64)
    logits.requires_grad_()
    routing = GatedSets()(logits)
    assert routing.assignment[:, 0].tolist() == [2, 0]
    assert routing.assignment[0, 1] == 1
    assert routing.assignment[1, 1] < 0
    torch.testing.assert_close(routing.gate[:, 1], torch.tensor([1.0, 0.0], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(routing.gate.square().sum(), logits)
    assert gradient.isfinite().all()


def test_serving_takes_the_most_probable() -> None:
    logits = torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64).log()
    routing = GatedSets().eval()(logits)
    assert routing.assignment.flatten().tolist() == [0, 2]
    torch.testing.assert_close(routing.gate.flatten(), torch.tensor([0.5, 0.3], dtype=torch.float64))


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_selected must be a positive int"):
        GatedSets(num_selected=0)
    with pytest.raises(ValueError, match="num_selected=4 exceeds the number of experts, 3"):
        GatedSets(num_selected=4)(torch.zeros(5, K))
