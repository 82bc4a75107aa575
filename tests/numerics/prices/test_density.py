import itertools
import math

import pytest
import torch

from prob_moe.numerics.prices.density import log_tree_weight, price_log_density, price_structure
from tests.numerics.brute_force import best_assignment, draw_scores, enumerate_assignments, optimal_prices

INF = math.inf


def random_logits(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sum_over_trees(logits, assignment, prices, roots):
    """Probability density as an explicit sum over in-trees: every non-root picks one edge; cycles are discarded."""
    n, k = logits.shape
    probs = torch.softmax(logits - prices, -1)
    others = [a for a in range(k) if a not in roots]
    total = 0.0
    for parents in itertools.product(range(k), repeat=len(others)):
        parent = dict(zip(others, parents))
        weight = 1.0
        for a in others:
            node, steps = a, 0
            while node not in roots and steps <= k:
                node, steps = parent[node], steps + 1
            if node not in roots:
                weight = 0.0
                break
            weight *= sum(probs[i, parent[a]].item() for i in range(n) if assignment[i] == a)
        total += weight
    return total * probs[torch.arange(n), assignment].prod().item()


@pytest.mark.parametrize("delta", [-2.0, 0.5, 7.0])
def test_two_by_two_integrates_to_the_oracle(delta):
    logits = torch.tensor([[delta, 0.0], [0.0, 0.0]], dtype=torch.float64)
    grid = torch.linspace(-80, 80, 20001, dtype=torch.float64)
    prices = torch.stack([torch.zeros_like(grid), grid], -1)
    density = price_log_density(logits, torch.tensor([0, 1]), prices, 1).exp()
    growth = math.exp(delta)
    oracle = growth * (growth - 1 - delta) / (growth - 1) ** 2
    assert torch.trapezoid(density, grid).item() == pytest.approx(oracle, rel=1e-9)


@pytest.mark.parametrize(
    ("assignment", "k", "capacity", "roots"),
    [
        ([0, 1, 2, 3], 4, 1, {0}),
        ([2, 0, 1, 0, 1, 2], 3, 2, {0}),
        ([1, 1, 2, 0, 2], 4, 2, {0, 3}),
        ([1, 1, 1], 3, 3, {0, 2}),
    ],
)
def test_equals_the_sum_over_trees(assignment, k, capacity, roots):
    logits = random_logits(len(assignment), k)
    prices = random_logits(k, seed=1).abs()
    prices[list(roots)] = 0.0
    assignment = torch.tensor(assignment)
    expected = math.log(sum_over_trees(logits, assignment, prices, roots))
    assert price_log_density(logits, assignment, prices, capacity).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("logits", "capacity", "assignment", "box"),
    [
        # As numbers: the assignment is a likely one under these logits.
        (
            [[0.8, 0.2, 0.1], [-0.6, 0.1, -1.4], [0.3, 1.0, -1.4], [1.0, 0.5, 1.2]],
            2,
            [0, 0, 1, 1],
            [(0, 0.7), (0, 0.9)],
        ),
        ([[-1.6, 0.2, 2.2], [0.9, 1.2, -0.4], [-1.4, 0.9, 0.9]], 1, [2, 0, 1], [(-0.5, 1.5), (-1.0, 2.0)]),
    ],
    ids=["slack", "tight"],
)
def test_mass_in_a_box_equals_the_frequency_of_drawn_prices(logits, capacity, assignment, box):
    logits = torch.tensor(logits, dtype=torch.float64)
    k, draws = logits.shape[-1], 200_000
    support = enumerate_assignments(logits.shape[0], k, capacity)
    assignment = torch.tensor(assignment)
    scores = draw_scores(logits, draws, seed=5)
    hit = (support[best_assignment(scores, support)] == assignment).all(-1)
    prices = optimal_prices(scores[hit], assignment, capacity)
    free = price_structure(logits, assignment, capacity).free.nonzero().squeeze(-1)
    inside = torch.ones(len(prices), dtype=torch.bool)
    for column, (low, high) in zip(free, box):
        inside &= (prices[:, column] > low) & (prices[:, column] < high)
    frequency = inside.sum().item() / draws

    axes = [torch.linspace(low, high, 401, dtype=torch.float64) for low, high in box]
    grid = torch.zeros(401, 401, k, dtype=torch.float64)
    for column, values in zip(free, torch.meshgrid(*axes, indexing="ij")):
        grid[..., column] = values
    density = price_log_density(logits, assignment, grid, capacity).exp()
    mass = torch.trapezoid(torch.trapezoid(density, axes[1]), axes[0]).item()
    assert abs(frequency - mass) < 5 * math.sqrt(mass * (1 - mass) / draws)
    assert mass > 0.005


def test_structure_without_mask():
    logits = torch.zeros(4, 3)
    tight = price_structure(torch.zeros(3, 3), torch.tensor([2, 0, 1]), 1)
    assert tight.free.tolist() == [False, True, True]
    assert not tight.bounded.any()
    slack = price_structure(logits, torch.tensor([0, 0, 1, 2]), 2)
    assert slack.free.tolist() == slack.bounded.tolist() == [True, False, False]
    assert not price_structure(logits, torch.tensor([0, 0, 0, 1]), 2).feasible


def test_structure_separates_components_of_the_mask():
    # 0 ⇄ 1 exchange both ways; 2 may give to 0, but nobody can give to 2: an edge no cycle uses.
    logits = torch.tensor([[0.0, 0.0, -INF], [0.0, 0.0, -INF], [0.0, -INF, 0.0]])
    tight = price_structure(logits, torch.tensor([0, 1, 2]), 1)
    assert tight.component.tolist() == [0, 0, 2]
    assert tight.free.tolist() == [False, True, False]
    # With a second slot at 1 and 2 full, 2 reaches a slot through 0 and everything shares one component.
    slack = price_structure(logits, torch.tensor([1, 1, 2]), 2)
    assert slack.component.tolist() == [0, 0, 0]
    assert slack.free.tolist() == [False, True, False]
    # Full experts 1 and 2 exchange with one another, but never with the slot at 0.
    logits = torch.tensor([[0.0, 0.0, 0.0], [-INF, 0.0, 0.0], [-INF, 0.0, 0.0], [-INF, 0.0, 0.0], [-INF, 0.0, 0.0]])
    walled = price_structure(logits, torch.tensor([0, 1, 1, 2, 2]), 2)
    assert walled.component.tolist() == [0, 1, 1]
    assert walled.free.tolist() == [False, False, True]
    assert not walled.bounded.any()


def test_mask_gives_the_product_over_components():
    inner = random_logits(2, 2, 2, seed=6)
    logits = torch.full((4, 4), -INF, dtype=torch.float64)
    logits[:2, :2], logits[2:, 2:] = inner[0], inner[1]
    logits[0, 3] = 5.0  # one way only: no feasible assignment uses it
    prices = torch.tensor([0.0, 0.4, 0.0, -1.1], dtype=torch.float64)
    whole = price_log_density(logits, torch.tensor([0, 1, 3, 2]), prices, 1)
    parts = price_log_density(inner, torch.tensor([[0, 1], [1, 0]]), prices.view(2, 2), 1)
    torch.testing.assert_close(whole, parts.sum())


def test_batches_broadcast_and_absent_rows_vanish():
    logits = random_logits(3, 5, 3, seed=7)
    assignment = torch.tensor([[0, 1, 2, 0, -1], [0, -1, 2, 1, 1]])
    prices = torch.tensor([[[[0.3, 0.0, 0.0]]], [[[0.9, 0.0, 0.0]]]], dtype=torch.float64)
    out = price_log_density(logits[:, None], assignment, prices, 2)
    assert out.shape == (2, 3, 2)
    keep = [0, 1, 2, 3]
    expected = price_log_density(logits[1, keep], assignment[0, keep], prices[1, 0, 0], 2)
    torch.testing.assert_close(out[1, 1, 0], expected)
    assert (out[..., 1] == -INF).all()  # there expert 1 is the full one: v_0 must be 0
    every = torch.tensor([-1] * 5)
    assert price_log_density(logits[0], every, torch.zeros(3), 2).item() == 0.0


def test_price_outside_the_support():
    slack = torch.tensor([0, 0, 1])
    zero = torch.zeros(3, 2, dtype=torch.float64)
    assert price_log_density(zero, slack, torch.tensor([-0.1, 0.0]), 2) == -INF
    assert price_log_density(zero, slack, torch.tensor([0.1, 0.1]), 2) == -INF
    assert price_log_density(zero, slack, torch.tensor([0.0, 0.0]), 2) > -INF
    assert price_log_density(zero, torch.tensor([0, 0, 0]), torch.zeros(2), 2) == -INF
    zero[0, 0] = -INF
    assert price_log_density(zero, slack, torch.zeros(2), 2) == -INF


def test_one_expert_is_certain():
    assert price_log_density(torch.randn(3, 1), torch.tensor([0, 0, 0]), torch.zeros(1), 3).item() == 0.0


def test_gradients_are_exact_and_finite_with_a_mask():
    logits = random_logits(4, 4, seed=8)
    allowed = torch.ones(4, 4, dtype=torch.bool)
    allowed[0, 1] = allowed[2, 3] = allowed[3, 0] = False
    assignment = torch.tensor([0, 1, 2, 3])

    def density(values, tail):
        prices = torch.cat([tail.new_zeros(1), tail])
        return price_log_density(values.masked_fill(~allowed, -INF), assignment, prices, 1)

    tail = torch.tensor([0.2, -0.5, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(density, (logits.requires_grad_(), tail))
    infeasible = logits.detach().clone()
    infeasible[0] = -INF
    infeasible.requires_grad_()
    out = price_log_density(infeasible, assignment, torch.zeros(4), 1)
    (gradient,) = torch.autograd.grad(out, infeasible)
    assert out == -INF
    assert (gradient == 0).all()


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_single_precision_agrees_with_double(scale):
    logits = random_logits(256, 16, seed=9, scale=scale)
    assignment = torch.arange(256) % 16
    prices = random_logits(16, seed=10)
    prices[0] = 0.0
    double = price_log_density(logits, assignment, prices, 16)
    single = price_log_density(logits.float(), assignment, prices.float(), 16)
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(double.item(), rel=1e-6)


def test_tree_weight_of_weakly_linked_groups():
    # 1 and 2 exchange freely; only a link of 1e-30 leads to the root: det = 2e-30 (+1e-60), lost by an LU
    # decomposition.
    exchange = torch.tensor([[0.0, 0.0, 0.0], [1e-30, 0.0, 1.0], [1e-30, 1.0, 0.0]], dtype=torch.float64)
    weight = log_tree_weight(exchange, torch.tensor([False, True, True]))
    assert weight.item() == pytest.approx(math.log(2e-30), rel=1e-14)


def test_tree_weight_equals_the_determinant():
    exchange = torch.rand(8, 7, 7, dtype=torch.float64)
    free = torch.rand(8, 7) > 0.4
    free[:, 0] = False  # without a root there is no tree
    rates = exchange - torch.diag_embed(exchange.diagonal(dim1=-2, dim2=-1))
    laplacian = torch.diag_embed(rates.sum(-1)) - rates
    expected = torch.stack([torch.logdet(m[f][:, f]) if f.any() else m.new_zeros(()) for m, f in zip(laplacian, free)])
    torch.testing.assert_close(log_tree_weight(exchange, free), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 0}, "capacity must be a positive int"),
        ({"capacity": True}, "capacity must be a positive int"),
        ({"logits": torch.zeros(3)}, "logits must be floating point of shape"),
        ({"logits": torch.full((3, 2), math.nan)}, "NaN or \\+inf"),
        ({"assignment": torch.zeros(3)}, "assignment must be long of shape"),
        ({"assignment": torch.tensor([0, 1, 2])}, "experts 0 to 1"),
        ({"prices": torch.zeros(3)}, "one price per expert"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "logits": torch.zeros(3, 2),
        "assignment": torch.tensor([0, 1, 1]),
        "prices": torch.zeros(2),
        "capacity": 2,
    }
    with pytest.raises(ValueError, match=message):
        price_log_density(**(arguments | change))
