"""Conditional Poisson sets against enumeration, and what fails: other laws, and subtraction."""

import itertools

import pytest
import torch
from torch import Tensor

from prob_moe.numerics import (
    log_elementary_symmetric,
    log_inclusion_probabilities,
    log_pair_probabilities,
    sample_conditional_poisson,
)

SIZES = [(1, 1), (4, 1), (4, 2), (5, 3), (6, 6)]


def random_log_odds(k: int, seed: int = 0) -> Tensor:
    return torch.randn(k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(-1)


def enumerate_sets(log_odds: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """All sets as 0/1 rows (count, k) and their unnormalised probabilities (count,), the slow twin of the module."""
    k = len(log_odds)
    sets = torch.zeros(0, k, dtype=torch.float64)
    for members in itertools.combinations(range(k), m):
        row = torch.zeros(1, k, dtype=torch.float64)
        row[0, list(members)] = 1.0
        sets = torch.cat([sets, row])
    odds = log_odds.exp()
    return sets, torch.where(sets > 0, odds, torch.ones_like(odds)).prod(-1)


def worst_standard_error(draws: Tensor, log_odds: Tensor, m: int) -> float:
    """How far the frequencies of all sets lie from P(S), in standard errors of the worst set."""
    sets, products = enumerate_sets(log_odds, m)
    expected = products / products.sum()
    drawn = torch.zeros(draws.shape[-1], len(log_odds), dtype=torch.float64).scatter_(1, draws.mT, 1.0)
    frequency = (drawn.unsqueeze(1) == sets).all(-1).double().mean(0)
    errors = (expected * (1 - expected) / draws.shape[-1]).sqrt()
    return float(((frequency - expected).abs() / errors.clamp(min=1e-12)).max())


@pytest.mark.parametrize(("k", "m"), SIZES)
def test_everything_against_enumeration(k: int, m: int) -> None:
    log_odds = random_log_odds(k)
    sets, products = enumerate_sets(log_odds, m)
    total = products.sum()
    inclusion = (products.unsqueeze(-1) * sets).sum(0) / total
    torch.testing.assert_close(log_elementary_symmetric(log_odds, m), total.log())
    torch.testing.assert_close(log_inclusion_probabilities(log_odds, m).exp(), inclusion)
    members = torch.arange(m)
    pairs = torch.einsum("s,sa,sb->ab", products, sets, sets)[:m, :m] / total
    torch.testing.assert_close(log_pair_probabilities(log_odds, members).exp(), pairs)


def test_forbidden_entries_are_never_taken_and_leave_gradients_finite() -> None:
    log_odds = random_log_odds(5)
    log_odds[2] = -torch.inf
    allowed = log_odds[[0, 1, 3, 4]]
    log_odds.requires_grad_()
    inclusion = log_inclusion_probabilities(log_odds, 2)
    assert inclusion[2] == -torch.inf
    torch.testing.assert_close(inclusion.detach()[[0, 1, 3, 4]], log_inclusion_probabilities(allowed, 2))
    (gradient,) = torch.autograd.grad(inclusion[0] + log_elementary_symmetric(log_odds, 2), log_odds)
    assert gradient[2] == 0
    assert gradient.isfinite().all()
    assert not (sample_conditional_poisson(log_odds.expand(200, 5), 2) == 2).any()


def test_fewer_allowed_than_selected_have_no_sets() -> None:
    assert log_elementary_symmetric(torch.tensor([0.0, -torch.inf, -torch.inf]), 2) == -torch.inf


@pytest.mark.parametrize(("k", "m"), [(4, 2), (5, 3)])
def test_draws_follow_the_law(k: int, m: int) -> None:
    log_odds = 2 * random_log_odds(k)
    draws = sample_conditional_poisson(log_odds.expand(100_000, k), m, generator=torch.Generator().manual_seed(1))
    assert (draws[1:] > draws[:-1]).all()
    assert worst_standard_error(draws, log_odds, m) < 5


def test_plackett_luce_sets_are_another_law() -> None:
    log_odds = 2 * random_log_odds(4)
    uniforms = torch.rand(100_000, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gumbel_top = (log_odds - (-uniforms.log()).log()).topk(2).indices.sort(-1).values.mT
    assert worst_standard_error(gumbel_top, log_odds, 2) > 20


@pytest.mark.parametrize("favourite", [40.0, 12.0])
def test_saturated_float32(favourite: float) -> None:
    logits = torch.tensor([favourite, -40.0, -40.5, -41.0])
    log_p = logits.log_softmax(-1)
    exact = log_inclusion_probabilities(logits.double().log_softmax(-1), 2)
    torch.testing.assert_close(log_inclusion_probabilities(log_p, 2).double(), exact, atol=1e-5, rtol=1e-5)
    # By subtraction, pi_a = p_a (1 - p_a) / e_2 of the favourite: 0 in float32, where 1 is right.
    p = log_p.exp()
    by_subtraction = p * (1 - p) / log_elementary_symmetric(log_p, 2).exp()
    assert not torch.isclose(by_subtraction[0], exact[0].exp().float(), atol=0.5)


def test_first_and_second_derivatives() -> None:
    log_odds = random_log_odds(4).requires_grad_()
    members = torch.tensor([1, 2])
    for function in (
        lambda x: log_elementary_symmetric(x, 2),
        lambda x: log_inclusion_probabilities(x, 2),
        lambda x: log_pair_probabilities(x, members),
    ):
        assert torch.autograd.gradcheck(function, log_odds)
        assert torch.autograd.gradgradcheck(function, log_odds)


def test_batches_of_odds_and_of_sets() -> None:
    log_odds = torch.stack([random_log_odds(4, seed) for seed in range(6)]).view(2, 3, 4)
    draws = sample_conditional_poisson(log_odds, 2, generator=torch.Generator().manual_seed(0))
    assert draws.shape == (2, 2, 3)
    pairs = log_pair_probabilities(log_odds, draws)
    assert pairs.shape == (2, 2, 2, 3)
    inclusion = log_inclusion_probabilities(log_odds, 2)
    torch.testing.assert_close(pairs[0, 0], inclusion.gather(-1, draws[0].unsqueeze(-1)).squeeze(-1))
    torch.testing.assert_close(pairs[:, :, 1, 2], log_pair_probabilities(log_odds[1, 2], draws[:, 1, 2]))


@pytest.mark.parametrize("wrong", [0, 5, True, 1.0])
def test_a_wrong_number_is_named(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"num_selected must be an int from 1 to k = 4"):
        sample_conditional_poisson(torch.zeros(4), wrong)
