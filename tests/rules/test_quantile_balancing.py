"""Balancing by prices: the best of all choices within capacity, by enumeration; its gates and their gradient."""

from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from prob_moe.numerics import solve_assignment
from prob_moe.rules import QuantileBalancing, TopGates
from tests.rules.loops import D, K, make_experts, mixture_loop

N = 6


def best_sets(logits: Tensor, capacity: int) -> list[tuple[int, ...]]:
    """Of all ways to give every datapoint two experts within capacity, the one of the largest total logit."""

    def total(sets: tuple[tuple[int, ...], ...]) -> float:
        chosen = [e for each in sets for e in each]
        if max(chosen.count(e) for e in range(K)) > capacity:
            return -float("inf")
        return sum(float(logits[i, e]) for i, each in enumerate(sets) for e in each)

    return list(max(product(combinations(range(K), 2), repeat=len(logits)), key=total))


@pytest.mark.parametrize("capacity", [4, 5, 6])
def test_experts_gates_and_gradient_are_those_of_the_best_choice(capacity: int) -> None:
    experts, x = make_experts(), torch.randn(N, D, dtype=torch.float64)
    logits = (torch.randn(N, K, dtype=torch.float64) + torch.tensor([2.0, 0.0, 0.0])).requires_grad_()
    routing = QuantileBalancing(capacity=capacity)(logits)
    sets = best_sets(logits.detach(), capacity)
    assert routing.assignment.mT.tolist() == [list(each) for each in sets]
    gates = torch.zeros_like(logits)
    for i, (a, b) in enumerate(sets):
        share = 1 / (1 + torch.exp(logits[i, b] - logits[i, a]))
        gates = gates.index_put((torch.tensor([i, i]), torch.tensor([a, b])), torch.stack([share, 1 - share]))
    outputs = routing.output(experts, x), mixture_loop(experts, x, gates)
    torch.testing.assert_close(*outputs, rtol=1e-10, atol=1e-12)
    gradients = (torch.autograd.grad(out.square().sum(), logits, retain_graph=True)[0] for out in outputs)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)
    # First come, first served is another rule.
    greedy = TopGates(capacity=capacity)(logits).assignment
    assert (capacity == N) == bool((greedy >= 0).all())


def test_everybody_has_two_most_wanted_experts_at_the_prices() -> None:
    logits = torch.randn(60, K, dtype=torch.float64) + torch.tensor([1.0, 0.0, -1.0])
    chosen = QuantileBalancing()(logits).assignment
    assert chosen.flatten().bincount(minlength=K).tolist() == [40, 40, 40]
    prices = solve_assignment(logits, 40, num_selected=2).prices

    def lost(scores: Tensor) -> Tensor:
        """By how much the best of the others is above the worst that a datapoint has."""
        has = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, chosen.mT, True)
        return scores.masked_fill(has, -torch.inf).amax(-1) - scores.masked_fill(~has, torch.inf).amin(-1)

    assert lost(logits - prices).max() < 1e-9
    assert lost(logits).max() > 0.1


@pytest.mark.parametrize("masked", [False, True])
def test_serving_is_top_m_gating(masked: bool) -> None:
    logits = torch.randn(2, 11, K) + torch.tensor([3.0, 0.0, 0.0])
    mask = torch.rand(2, 11) < 0.7 if masked else None
    ours, top = QuantileBalancing().eval()(logits, mask=mask), TopGates()(logits, mask=mask)
    assert torch.equal(ours.assignment, top.assignment)
    assert torch.equal(ours.gate, top.gate)


def test_padding_takes_no_place() -> None:
    logits = torch.randn(2, 9, K)
    mask = torch.tensor([[True] * 6 + [False] * 3, [True] * 9])
    chosen = QuantileBalancing()(logits, mask=mask).assignment
    assert (chosen[0, :, 6:] == -1).all()
    assert chosen[0, :, :6].flatten().bincount(minlength=K).tolist() == [4, 4, 4]


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_selected must be a positive int"):
        QuantileBalancing(num_selected=0)
    with pytest.raises(ValueError, match="num_selected=4 exceeds the number of experts, 3"):
        QuantileBalancing(num_selected=4)(torch.zeros(5, K))
    with pytest.raises(ValueError, match="capacity"):
        QuantileBalancing(capacity=2)(torch.zeros(5, K))
