"""Derivatives, steps and starts of the search for a maximum."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from prob_moe.sklearn.derivatives import derivatives, unit_scores
from prob_moe.sklearn.em import expectation_maximisation
from prob_moe.sklearn.families import REGRESSIONS
from prob_moe.sklearn.linear import solve_positive
from prob_moe.sklearn.newton import newton
from prob_moe.sklearn.search import RIDGE_COST, find_maximum
from prob_moe.sklearn.sharp import sharp_members
from prob_moe.sklearn.starts import _random, _sharp, starting_vectors
from tests.sklearn.tables import problem_of, real, two_lines


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("num_experts", [1, 2, 3])
def test_derivatives_against_autograd(num_experts: int, units: bool) -> None:
    problem = problem_of(*two_lines(20), num_experts, units=units, ridge=0.1)
    vectors = torch.randn(3, problem.layout.size, dtype=torch.float64) / 2
    found = derivatives(problem, vectors)
    for vector, gradient, hessian in zip(vectors, found.gradient, found.hessian):

        def value(vector: torch.Tensor) -> torch.Tensor:
            return problem.value(vector.unsqueeze(0))[0]

        exact = torch.autograd.functional.hessian(value, vector)
        torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(value, vector))
        torch.testing.assert_close(hessian, exact)
        penalty = 0.1 * problem.ridge_matrix @ vector
        torch.testing.assert_close(problem.unit_weights @ unit_scores(problem, vector) - penalty, gradient)


def test_the_ridge_does_not_depend_on_the_reference() -> None:
    problem = problem_of(*two_lines(20), 3, ridge=0.1)
    vectors = torch.randn(4, problem.layout.size, dtype=torch.float64)
    other = problem.layout.permuted(vectors, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(problem.value(other), problem.value(vectors))
    torch.testing.assert_close(problem.penalty(other), problem.penalty(vectors))


@pytest.mark.parametrize("num_experts", [2, 3])
def test_no_step_loses(num_experts: int) -> None:
    problem = problem_of(*two_lines(60), num_experts)
    vectors = starting_vectors(problem, 12, np.random.RandomState(0))
    last = problem.value(vectors)
    for _ in range(20):
        vectors = expectation_maximisation(problem, vectors, max_iterations=1)
        value = problem.value(vectors)
        assert bool((value > last - 1e-9).all())
        last = value
    finish = newton(problem, vectors)
    assert bool((finish.values >= last).all())
    inside = ~problem.on_the_floor(finish.vectors) & finish.converged
    assert int(inside.sum()) >= 6
    slopes = derivatives(problem, finish.vectors[inside])
    assert float((slopes.gradient**2 / slopes.complete).max()) < 1e-6
    assert bool((torch.linalg.eigvalsh(slopes.hessian) < 0).all())


def test_singular_equations_have_the_shortest_solution() -> None:
    matrix = torch.tensor([[[1.0, 1.0], [1.0, 1.0]], [[2.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    right = torch.tensor([[2.0, 2.0], [2.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(
        solve_positive(matrix, right), torch.tensor([[1.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    )


def test_a_ridge_that_costs_too_much_is_lowered() -> None:
    """Two groups that a column separates: the router's coefficients would grow without end."""
    generator = np.random.default_rng(0)
    x = np.concatenate([np.linspace(-2, -1, 40), np.linspace(1, 2, 40)])[:, None]
    y = np.where(x[:, 0] < 0, 1 + x[:, 0], 8 - x[:, 0]) + generator.normal(size=80) / 10
    problem = problem_of(x, y, 2, ridge=1e-3)
    found = find_maximum(problem, 20, np.random.RandomState(0))
    assert found.problem.ridge < problem.ridge
    assert float(found.problem.penalty(found.vector.unsqueeze(0))) <= RIDGE_COST
    almost_none = newton(replace(problem, ridge=1e-14), found.vector.unsqueeze(0))
    assert float(almost_none.values) - found.log_likelihood < 2 * RIDGE_COST


@pytest.mark.slow
def test_random_starts_miss_a_sharp_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line through a few of many rows: starts with one expert on few rows find it, random responsibilities do not."""
    generator = np.random.default_rng(3)
    x = generator.uniform(-1, 1, (150, 1))
    y = np.where(np.arange(150) < 9, 2 * x[:, 0], 0) + generator.normal(size=150) * np.where(
        np.arange(150) < 9, 0.01, 1
    )
    problem = replace(problem_of(x, y, 2), router_columns=torch.ones(150, 1, dtype=torch.float64))
    best = find_maximum(problem, 60, np.random.RandomState(0)).log_likelihood
    monkeypatch.setattr("prob_moe.sklearn.starts._sharp", _random)
    monkeypatch.setattr("prob_moe.sklearn.starts.sharp_members", lambda *arguments: [])
    assert best > find_maximum(problem, 60, np.random.RandomState(0)).log_likelihood + 1


def test_sharp_starts_have_few_rows() -> None:
    problem = problem_of(*two_lines(90), 3)
    for seed in range(20):
        responsibilities = _sharp(problem, np.random.RandomState(seed))
        torch.testing.assert_close(responsibilities.sum(0), torch.ones(90, dtype=torch.float64))
        alone = responsibilities[0] == 1
        assert bool((alone | (responsibilities[0] == 0)).all())
        assert 3 <= int(alone.sum()) <= 30


@pytest.mark.parametrize("units", [False, True])
def test_rows_on_a_line_are_found_before_anything_is_fitted(units: bool) -> None:
    generator = np.random.default_rng(3)
    x, on_it = generator.uniform(-1, 1, (150, 1)), np.arange(150) < 16
    y = np.where(on_it, 2 * x[:, 0], 0) + generator.normal(size=150) * np.where(on_it, 0.01, 1)
    problem = replace(problem_of(x, y, 2, units=units), floors=torch.tensor([np.log(5e-3)]))
    one = replace(problem, num_experts=1)
    alone = newton(one, expectation_maximisation(one, one.layout.join(one.family.flat(one))))
    log_likelihoods = one.log_joint(alone.vectors)[0, 0]
    found = sharp_members(problem, log_likelihoods, 5, np.random.RandomState(0))
    sharp = torch.arange(found.shape[1]) < (8 if units else 16)
    # Another row may be near by chance, and one of the line away.
    assert int((found[0] & sharp).sum()) >= sharp.sum() - 1
    assert int(found[0].sum()) <= sharp.sum() + 3
    assert len(found) <= 5
    assert len(sharp_members(replace(problem, floors=torch.tensor([0.0])), log_likelihoods, 5, generator)) > 0
    counts = replace(problem, family=REGRESSIONS["poisson"](), target=problem.target.exp().round())
    assert len(sharp_members(counts, log_likelihoods, 5, generator)) == 0


def test_a_weighted_problem_is_one_with_repeated_rows() -> None:
    x, y = real("datasets", "cars", "dist", "speed")
    problem = problem_of(x, y, 2)
    weights = torch.arange(50) % 3
    index = torch.repeat_interleave(torch.arange(50), weights)
    weighted = replace(problem, unit_weights=weights.double())
    repeated = replace(
        problem,
        columns=problem.columns[index],
        router_columns=problem.router_columns[index],
        target=problem.target[:, index],
        offset=problem.offset[index],
        row_weights=problem.row_weights[index],
        unit_weights=torch.ones(len(index), dtype=torch.float64),
    )
    vectors = starting_vectors(weighted, 4, np.random.RandomState(0))
    torch.testing.assert_close(expectation_maximisation(weighted, vectors), expectation_maximisation(repeated, vectors))
