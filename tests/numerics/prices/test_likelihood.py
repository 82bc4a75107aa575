import math

import pytest
import torch

from prob_moe.distributions import GumbelMatching
from prob_moe.numerics import METHODS
from prob_moe.numerics.prices import likelihood
from prob_moe.numerics.prices.density import price_log_density
from prob_moe.numerics.prices.likelihood import matching_likelihood, matching_log_prob
from prob_moe.testing import central_difference
from tests.numerics.brute_force import best_assignment, draw_scores, enumerate_assignments, optimal_prices

INF = math.inf


def random_logits(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("delta", [-30.0, -2.0, 1e-3, 0.5, 7.0, 60.0])
def test_two_by_two_oracle(delta):
    logits = torch.tensor([[delta, 0.0], [0.0, 0.0]], dtype=torch.float64)
    log_prob, error = matching_log_prob(logits, torch.tensor([0, 1]), 1)
    if abs(delta) < 0.01:
        oracle = math.log(0.5 + delta / 6)
    else:
        oracle = delta + math.log((math.expm1(delta) - delta) / math.expm1(delta) ** 2)
    assert log_prob.item() == pytest.approx(oracle, abs=1e-6)
    assert error < 1e-6


@pytest.mark.parametrize("scale", [0.3, 10.0])
@pytest.mark.parametrize(
    ("n", "k", "capacity"),
    [(4, 4, 1), (4, 2, 2), (6, 3, 2), (3, 3, 1), (3, 2, 2), (4, 3, 2), (5, 3, 3), (3, 2, 3), (2, 4, 1)],
)
def test_probabilities_sum_to_one(n, k, capacity, scale):
    log_prob, error = matching_log_prob(
        random_logits(n, k, seed=n + k, scale=scale), enumerate_assignments(n, k, capacity), capacity
    )
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=0.005)
    assert error.max() < 0.02


def test_probabilities_sum_to_one_by_importance_sampling():
    log_prob, error = matching_log_prob(random_logits(5, 5, seed=3), enumerate_assignments(5, 5, 1), 1)
    assert error.min() > 1e-4  # a standard error: four free prices are not integrated by a product rule
    assert error.max() < 0.03
    assert log_prob.exp().sum().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("n", "k", "capacity"), [(4, 4, 1), (6, 3, 2), (4, 3, 2), (5, 5, 1)])
def test_equals_frequencies_of_perturbed_optima(n, k, capacity):
    draws = 200_000
    logits = random_logits(n, k, seed=11)
    support = enumerate_assignments(n, k, capacity)
    counts = torch.bincount(best_assignment(draw_scores(logits, draws, seed=12), support), minlength=len(support))
    common = counts > 200
    assert common.sum() > 5
    log_prob, error = matching_log_prob(logits, support[common], capacity)
    prob = log_prob.exp()
    spread = (prob * (1 - prob) / draws + (prob * error).square()).sqrt()
    assert ((counts[common] / draws - prob) / spread).abs().max() < 5


@pytest.mark.parametrize("shape", [(8, 1), (16, 1), (8, 2), (4, 12)])
def test_equal_logits_make_every_assignment_equally_likely(shape):
    k, capacity = shape
    n = k * capacity
    # Row and column offsets change no difference between assignments.
    logits = random_logits(n, 1, seed=1) + random_logits(1, k, seed=2, scale=3.0)
    assignment = torch.arange(n) % k
    log_prob, error = matching_log_prob(logits, assignment, capacity)
    exact = k * math.lgamma(capacity + 1) - math.lgamma(n + 1)
    assert abs(log_prob.item() - exact) < 5 * error.item()
    assert error < 0.1


def test_slack_at_the_boundary_agrees_with_many_more_points():
    # One expert is starved of its favourites, so all other prices pile up at 0.
    logits = random_logits(30, 6, seed=5)
    assignment = torch.tensor([0] * 5 + [1] * 6 + [2] * 6 + [3] * 6 + [4] * 6 + [5])
    logits[:, 0] += 1.0
    coarse, error = matching_log_prob(logits, assignment, 6)  # 4 full experts: importance sampling
    finer, small = matching_log_prob(logits, assignment, 6, tolerance=0.004, max_points=2**17)
    assert small < error
    assert abs(coarse - finer) < 5 * error


@pytest.mark.parametrize(("assignment", "capacity"), [([0, 1, 2, 2, 1, 0], 2), ([0, 0, 1, 1, 2, 0], 3)])
def test_product_rule_and_importance_sampling_agree(assignment, capacity, monkeypatch):
    from prob_moe.numerics.prices import likelihood

    logits = random_logits(6, 3, seed=6, scale=2.0)
    assignment = torch.tensor(assignment)
    exact, _ = matching_log_prob(logits, assignment, capacity)
    monkeypatch.setattr(likelihood, "RULES", {})
    sampled, error = matching_log_prob(logits, assignment, capacity)
    assert 0 < error < 0.04
    assert abs(exact - sampled) < 5 * error


def test_two_prices_equal_a_plain_grid():
    logits = random_logits(6, 3, seed=7)
    assignment = torch.tensor([0, 1, 2, 2, 1, 0])
    axis = torch.linspace(-25, 25, 501, dtype=torch.float64)
    prices = torch.stack([torch.zeros(501, 501, dtype=torch.float64), *torch.meshgrid(axis, axis, indexing="ij")], -1)
    density = price_log_density(logits, assignment, prices, 2).exp()
    log_prob, _ = matching_log_prob(logits, assignment, 2)
    assert log_prob.exp().item() == pytest.approx(density.sum().item() * 0.01, rel=1e-6)


def test_mask_is_a_product_over_components_and_a_limit_of_small_logits():
    inner = random_logits(2, 3, 3, seed=8)
    logits = torch.full((6, 6), -INF, dtype=torch.float64)
    logits[:3, :3], logits[3:, 3:] = inner[0], inner[1]
    logits[1, 4] = 2.0  # one way only
    assignment = torch.tensor([1, 0, 2, 3, 5, 4])
    whole, error = matching_log_prob(logits, assignment, 1)
    parts, _ = matching_log_prob(inner, torch.tensor([[1, 0, 2], [0, 2, 1]]), 1)
    assert abs(whole - parts.sum()) < 5 * error
    square = random_logits(3, 3, seed=9)
    square[0, 2] = -INF
    masked, _ = matching_log_prob(square, torch.tensor([1, 0, 2]), 1)
    nearly, _ = matching_log_prob(square.clamp(min=-40.0), torch.tensor([1, 0, 2]), 1)
    assert masked.item() == pytest.approx(nearly.item(), abs=1e-4)


def test_infeasible_assignments_have_no_probability():
    logits = random_logits(4, 2, seed=1)
    over = torch.tensor([[0, 0, 0, 1], [0, 1, 0, 1]])
    log_prob, error = matching_log_prob(logits, over, 2)
    assert log_prob[0] == -INF
    assert log_prob[1] > -INF
    assert error[0] == 0
    logits[0, 0] = -INF
    assert matching_log_prob(logits, over[1], 2)[0] == -INF


def test_absent_rows_and_batches():
    logits = random_logits(2, 1, 5, 3, seed=2)
    assignment = torch.tensor([[0, 1, 2, -1, 1], [0, -1, -1, 1, 2], [-1, -1, -1, -1, -1], [0, 0, 1, 1, 2]])
    log_prob, error = matching_log_prob(logits, assignment, 2)
    assert log_prob.shape == error.shape == (2, 4)
    present = assignment[0] >= 0
    single, _ = matching_log_prob(logits[1, 0, present], assignment[0, present], 2)
    assert log_prob[1, 0].item() == pytest.approx(single.item(), abs=1e-6)
    assert (log_prob[:, 2] == 0).all()


def test_without_full_experts_datapoints_are_independent():
    logits = random_logits(4, 3, seed=3)
    assignment = torch.tensor([0, 2, 2, 1])
    log_prob, error = matching_log_prob(logits, assignment, 3)
    torch.testing.assert_close(log_prob, torch.log_softmax(logits, -1)[torch.arange(4), assignment].sum())
    assert error == 0


def test_same_arguments_same_numbers_whatever_the_global_generator():
    logits, assignment = random_logits(6, 6, seed=4), torch.arange(6)
    torch.manual_seed(1)
    first = matching_log_prob(logits, assignment, 1)[0]
    state = torch.get_rng_state()
    second = matching_log_prob(logits, assignment, 1)[0]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, second)


def test_order_of_datapoints_and_experts_does_not_matter():
    logits, assignment = random_logits(6, 3, seed=5), torch.tensor([0, 1, 2, 2, 1, 0])
    base, _ = matching_log_prob(logits, assignment, 2)
    rows = torch.tensor([3, 5, 0, 1, 4, 2])
    columns = torch.tensor([2, 0, 1])  # expert j becomes expert columns[j], which moves the root
    renamed = torch.empty_like(logits).index_copy(1, columns, logits)
    moved, _ = matching_log_prob(renamed[rows], columns[assignment[rows]], 2)
    assert moved.item() == pytest.approx(base.item(), abs=1e-5)


@pytest.mark.parametrize(
    ("n", "k", "capacity", "assignment", "tolerance"),
    [
        (4, 2, 2, [0, 1, 1, 0], 1e-6),
        (5, 3, 2, [0, 1, 1, 0, 2], 1e-4),
        (3, 2, 2, [0, 1, 1], 1e-6),
        (4, 2, 4, [0, 1, 1, 0], 1e-6),
        (5, 5, 1, [1, 0, 2, 4, 3], 0.02),
    ],
)
def test_gradient_equals_finite_differences(n, k, capacity, assignment, tolerance):
    logits = random_logits(n, k, seed=6).requires_grad_()
    assignment = torch.tensor(assignment)
    log_prob, _ = matching_log_prob(logits, assignment, capacity)
    (gradient,) = torch.autograd.grad(log_prob, logits)
    step = 1e-3 if tolerance < 0.01 else 0.3  # a wide step where the value itself is only an estimate
    for _ in range(4):
        direction = torch.randn_like(logits)
        slope = central_difference(
            lambda phi: matching_log_prob(phi, assignment, capacity)[0], logits.detach(), direction, step=step
        )
        assert slope.agrees_with(float((gradient * direction).sum()), relative_error=tolerance), slope


def test_gradient_with_mask_and_absent_rows_is_finite_and_zero_there():
    logits = random_logits(5, 3, seed=7)
    logits[0, 2] = logits[3, 0] = -INF
    logits.requires_grad_()
    for assignment, capacity in (([0, 1, 2, 1, -1], 2), ([0, 1, 2, -1, -1], 1)):
        log_prob, _ = matching_log_prob(logits, torch.tensor(assignment), capacity)
        (gradient,) = torch.autograd.grad(log_prob, logits)
        assert gradient.isfinite().all()
        assert (gradient[logits == -INF] == 0).all()
        assert (gradient[4] == 0).all()
        assert gradient.abs().max() > 0.01


@pytest.mark.parametrize(
    ("n", "k", "capacity", "assignment"),
    [(4, 4, 1, [0, 1, 2, 3]), (4, 3, 2, [0, 0, 1, 1]), (6, 3, 2, [0, 0, 1, 1, 2, 2])],
)
def test_score_of_the_draw_averages_to_the_gradient(n, k, capacity, assignment):
    logits, assignment = random_logits(n, k, seed=8), torch.tensor(assignment)
    logits[torch.arange(n), assignment] += 1.0
    support = enumerate_assignments(n, k, capacity)
    scores = draw_scores(logits, 60_000, seed=9)
    hit = (support[best_assignment(scores, support)] == assignment).all(-1)
    prices = optimal_prices(scores[hit], assignment, capacity)
    many = logits.expand(len(prices), n, k).clone().requires_grad_()
    (score,) = torch.autograd.grad(price_log_density(many, assignment, prices, capacity).sum(), many)
    leaf = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(matching_log_prob(leaf, assignment, capacity)[0], leaf)
    z = (score.mean(0) - gradient) / (score.std(0) / math.sqrt(len(prices)))
    assert len(prices) > 1000
    assert z.abs().max() < 5


def test_single_precision_in_single_precision_out():
    logits = random_logits(64, 4, seed=9)
    assignment = torch.arange(64) % 4
    single, error = matching_log_prob(logits.float(), assignment, 16)
    double, _ = matching_log_prob(logits, assignment, 16)
    assert single.dtype == error.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_standard_error_of_a_large_problem(scale):
    log_prob, error = matching_log_prob(random_logits(1024, 16, seed=10, scale=scale), torch.arange(1024) % 16, 64)
    assert log_prob.isfinite()
    assert error < 0.05


def test_error_is_honest_when_there_are_too_few_points(monkeypatch):
    monkeypatch.setattr(likelihood, "_annealed_where_poor", lambda problem, estimate, *rest: estimate)
    n = 48
    logits, assignment = torch.zeros(n, n, dtype=torch.float64), torch.arange(n)
    log_prob, error = matching_log_prob(logits, assignment, 1, num_points=64, max_points=64)
    assert error > 0.3
    assert abs(log_prob.item() + math.lgamma(n + 1)) < 5 * error


def test_the_method_of_each_value():
    """Forbidden pairs leave two components with a free price each; a third value is over capacity."""
    logits = random_logits(4, 4, seed=1)
    pairs = logits.clone()
    pairs[:2, 2:] = pairs[2:, :2] = -INF
    several = torch.stack([logits, pairs, logits])
    assignment = torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3], [0, 0, 2, 3]])
    found = matching_likelihood(several, assignment, 1)
    assert [METHODS[method] for method in found.method] == ["quadrature", "quadrature", "not feasible"]
    five = GumbelMatching(random_logits(5, 5, seed=1), capacity=1)
    assert five.log_prob_method(torch.arange(5).expand(2, 5)) == ["quasi-Monte Carlo"] * 2
    assert GumbelMatching(torch.zeros(3, 2), capacity=3).log_prob_method(torch.tensor([0, 0, 1])) == ["closed form"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_points": 3}, "num_points must be an int of at least 16, got 3"),
        ({"max_points": 2.0}, "max_points must be an int"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"capacity": 0}, "capacity must be a positive int"),
        ({"logits": torch.full((3, 2), math.nan)}, "NaN or \\+inf"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"logits": torch.zeros(3, 2), "assignment": torch.tensor([0, 1, 1]), "capacity": 2}
    with pytest.raises(ValueError, match=message):
        matching_log_prob(**(arguments | change))
