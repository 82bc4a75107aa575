"""Exact entropies, against enumeration and against draws; an error that says why elsewhere."""

import pytest
import torch

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.distributions.entropy import count_probabilities


def logits_of(*shape: int) -> torch.Tensor:
    return 1.5 * torch.randn(*shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64)


def by_enumeration(routing: AssignmentDistribution) -> torch.Tensor:
    log_prob = routing.log_prob(routing.enumerate_support())
    possible = log_prob > -torch.inf
    return -torch.where(possible, log_prob.exp() * log_prob.masked_fill(~possible, 0.0), 0.0).sum(0)


@pytest.mark.parametrize("capacity", [1, 2, 4])
def test_entropies_are_those_of_the_enumerated_laws(capacity: int) -> None:
    logits = logits_of(4, 3)
    logits[0, 1] = -torch.inf
    for routing in (IndependentRouting(logits), CapacitySkip(logits, capacity=capacity)):
        torch.testing.assert_close(routing.entropy(), by_enumeration(routing))


def test_padding_and_capacities_of_a_batch() -> None:
    logits, mask = logits_of(2, 4, 2), torch.tensor([[True, True, True, True], [True, True, False, True]])
    logits[1, 2] = torch.nan
    capacity = torch.tensor([2, 1])
    whole = CapacitySkip(logits, capacity=capacity, mask=mask).entropy()
    for element in range(2):
        alone = CapacitySkip(logits[element][mask[element]], capacity=int(capacity[element]))
        torch.testing.assert_close(whole[element], by_enumeration(alone))


@pytest.mark.parametrize("forbidden", [False, True])
def test_gradients(forbidden: bool) -> None:
    def entropies(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if forbidden:
            logits = logits.masked_fill(torch.eye(5, 3, dtype=torch.bool), -torch.inf)
        return IndependentRouting(logits).entropy(), CapacitySkip(logits, capacity=1).entropy()

    logits = logits_of(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(entropies, logits)
    assert torch.autograd.gradgradcheck(entropies, logits)


def test_a_large_problem_against_its_draws() -> None:
    torch.manual_seed(0)
    routing = CapacitySkip(logits_of(300, 5), capacity=40)
    surprise = -routing.log_prob(routing.sample(torch.Size((2000,))))
    error = surprise.std() / 2000**0.5
    assert abs(float((surprise.mean() - routing.entropy()) / error)) < 5
    # The entropy of the choices alone fails the same check.
    assert abs(float((surprise.mean() - IndependentRouting(routing.logits).entropy()) / error)) > 50


@pytest.mark.parametrize("n", [0, 1, 2, 7, 64])
def test_counts_against_one_trial_after_another(n: int) -> None:
    probs = logits_of(n, 3).sigmoid()
    law = torch.zeros(3, n + 1, dtype=torch.float64)
    law[:, 0] = 1.0
    for p in probs:
        law = law * (1 - p).unsqueeze(-1) + law.roll(1, -1) * p.unsqueeze(-1)
    torch.testing.assert_close(count_probabilities(probs), law, atol=1e-14, rtol=0)


def test_the_rest_says_what_there_is() -> None:
    with pytest.raises(NotImplementedError, match="GumbelMatching has no entropy in closed form; entropy_estimate"):
        GumbelMatching(logits_of(4, 2), capacity=2).entropy()
    with pytest.raises(NotImplementedError, match=r"DependentRounding has no entropy .* CapacitySkip have one"):
        DependentRounding(logits_of(4, 2), capacity=2).entropy()
