"""Random routing: the law of the draw, every draw against the objective, and what serves."""

from itertools import product

import pytest
import torch

from prob_moe.rules import RandomRouting, random_routing
from prob_moe.testing.statistics import deviation
from tests.rules.loops import D, K, make_experts

N = 3


def test_the_draws_are_uniform_whatever_the_router_says() -> None:
    logits = torch.tensor([5.0, 0.0, -5.0]).expand(40_000, K)
    drawn = torch.nn.functional.one_hot(RandomRouting()(logits).assignment[0], K).double()
    assert deviation(drawn, torch.full((K,), 1 / K)).worst()[0] < 5
    assert deviation(drawn, torch.tensor([0.35, 0.33, 0.32])).worst()[0] > 5


def test_the_mean_over_all_draws_is_the_uniform_objective_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    experts, x = make_experts(), torch.randn(N, D, dtype=torch.float64)
    every = torch.tensor(list(product(range(K), repeat=N)))
    monkeypatch.setattr(random_routing, "uniform_choices", lambda logits: every)
    logits = torch.randn(N, K, dtype=torch.float64).expand(len(every), N, K)
    ours = RandomRouting()(logits).output(experts, x).square().sum((-2, -1)).mean()
    exact = experts.dense(x).square().sum(-1).mean(-1).sum()
    torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-12)
    parameters = list(experts.parameters())
    for gradient, expected in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(exact, parameters)):
        torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_serving_gives_every_place_an_expert_and_counts_who_is_present() -> None:
    rule = RandomRouting().eval()
    plain = rule(torch.randn(300, K)).assignment[0]
    assert plain.equal(rule(torch.randn(300, K)).assignment[0])
    assert plain.bincount(minlength=K).min() > 60
    mask = torch.rand(300) < 0.5
    assert rule(torch.randn(300, K), mask=mask).assignment[0][mask].equal(plain[: int(mask.sum())])
