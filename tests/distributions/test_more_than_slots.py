"""More datapoints than slots, for the procedures that can drop: laws, weights, marginals and mode."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution, CapacitySkip, DependentRounding
from prob_moe.numerics import minimum_variance_marginals, solve_partial_assignment
from prob_moe.testing import check_assignment_distribution
from tests.distributions.test_contract import logits_of

DROPPING = [CapacitySkip, DependentRounding]


@pytest.mark.parametrize("distribution", DROPPING)
def test_contract(distribution: type[AssignmentDistribution]) -> None:
    sizes = [(5, 2, 1), (7, 3, 2), (5, 3, 1), (4, 1, 2)]
    report = check_assignment_distribution(distribution, sizes=sizes, num_samples=10_000)
    assert {"weights are unbiased", "capacity holds", "padding takes no part"} <= set(report.passed)
    assert ("log_prob equals frequencies" in report.passed) == (distribution is CapacitySkip)


@pytest.mark.parametrize("distribution", DROPPING)
def test_capacity_factor_below_one_counts_who_is_present(distribution: type[AssignmentDistribution]) -> None:
    mask = torch.arange(20) < torch.tensor([[12], [20]])
    routing = distribution(logits_of(2, 20, 3), capacity_factor=0.5, mask=mask)
    assert routing.capacity.tolist() == [2, 4]
    assert routing.loads(routing.mode).tolist() == [[2] * 3, [4] * 3]
    value = routing.sample((200,))
    assert routing.support.check(value).all()
    assert (value[:, ~mask] == -1).all()


@pytest.mark.parametrize(("n", "k", "capacity"), [(5, 2, 1), (8, 3, 2), (40, 4, 3), (200, 8, 10), (9, 1, 4)])
@pytest.mark.parametrize("scale", [0.5, 4.0, 20.0])
def test_marginals_satisfy_the_conditions_of_optimality(n: int, k: int, capacity: int, scale: float) -> None:
    logits = scale * logits_of(n, k)
    solved = minimum_variance_marginals(logits, capacity)
    r, p, alpha, beta = solved.marginals, logits.softmax(-1), solved.datapoint_prices, solved.expert_prices
    rows, columns = r.sum(-1), r.sum(-2)
    assert (rows <= 1 + 1e-12).all()
    assert (columns <= capacity * (1 + 1e-12)).all()
    assert (alpha >= 0).all()
    assert (beta >= 0).all()
    assert solved.gap < 1e-6 * solved.objective
    assert ((p / r - (alpha.unsqueeze(-1) + beta).sqrt()) * r).abs().max() < 1e-4
    assert (alpha * (1 - rows)).abs().max() < 1e-4 * solved.objective
    assert (beta * (capacity - columns)).abs().max() < 1e-4 * solved.objective


@pytest.mark.parametrize(("n", "k", "capacity"), [(4, 2, 1), (5, 3, 1), (7, 2, 2)])
def test_marginals_equal_an_independent_convex_solver(n: int, k: int, capacity: int) -> None:
    logits = logits_of(n, k)
    p = logits.softmax(-1).numpy()
    constraints = [
        {"type": "ineq", "fun": lambda r: 1 - r.reshape(n, k).sum(1)},
        {"type": "ineq", "fun": lambda r: capacity - r.reshape(n, k).sum(0)},
    ]
    peer = minimize(
        lambda r: (p.ravel() ** 2 / r).sum(),
        (p * capacity / n).ravel(),
        jac=lambda r: -(p.ravel() ** 2) / r**2,
        constraints=constraints,
        bounds=[(1e-6, 1.0)] * (n * k),
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert peer.success
    solved = minimum_variance_marginals(logits, capacity)
    assert float(solved.objective) == pytest.approx(peer.fun, rel=1e-6)
    np.testing.assert_allclose(solved.marginals.numpy(), peer.x.reshape(n, k), atol=1e-3)


def best_by_force(log_p: Tensor, capacity: int) -> tuple[int, float]:
    """The most datapoints that can be processed, and the largest sum of log p of so many."""
    n, k = log_p.shape
    best = (0, 0.0)
    for z in product(range(-1, k), repeat=n):
        if max(z.count(j) for j in range(k)) <= capacity:
            value = sum(float(log_p[i, e]) for i, e in enumerate(z) if e >= 0)
            if value > -torch.inf:
                best = max(best, (sum(e >= 0 for e in z), value))
    return best


def of(log_p: Tensor, value: Tensor) -> tuple[int, float]:
    processed = value >= 0
    picked = log_p.gather(-1, value.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return int(processed.sum()), float(picked[processed].sum())


@pytest.mark.parametrize("seed", range(30))
def test_mode_equals_brute_force(seed: int) -> None:
    """Also where experts are forbidden, until not even min(n, kc) datapoints can be processed."""
    generator = torch.Generator().manual_seed(seed)
    n, k, capacity = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((1, 6), (1, 4), (1, 3)))
    logits = 3 * torch.randn(n, k, generator=generator, dtype=torch.float64)
    if seed % 3 == 2:
        forbidden = torch.rand(n, k, generator=generator) < 0.5
        forbidden[:, 0] = False
        logits = logits.masked_fill(forbidden, -torch.inf)
    log_p = logits.log_softmax(-1)
    expected = best_by_force(log_p, capacity)
    assert seed % 3 == 2 or expected[0] == min(n, k * capacity)
    for distribution in DROPPING:
        value = distribution(logits, capacity=capacity).mode
        count, total = of(log_p, value)
        assert count == expected[0]
        assert total == pytest.approx(expected[1], abs=1e-9)
        assert (~value[value < 0] == logits.argmax(-1)[value < 0]).all()


def test_partial_assignment_of_a_batch_equals_one_by_one() -> None:
    scores, mask = logits_of(4, 30, 3), torch.arange(30) < torch.tensor([[30], [12], [4], [0]])
    scores[0, :25, 1:] = -torch.inf  # 25 datapoints for the slots of one expert
    capacity = torch.tensor([4, 2, 3, 1])
    together = solve_partial_assignment(scores, capacity, mask=mask)
    for b, present in enumerate((30, 12, 4, 0)):
        alone = solve_partial_assignment(scores[b, :present], int(capacity[b]))
        assert torch.equal(together[b, :present], alone)
        assert (together[b, present:] == -1).all()
    assert (together >= 0).sum(-1).tolist() == [9, 6, 4, 0]
