"""The comparison of gradients: what is unbiased passes, biased twins fail, exact gradients are finite differences."""

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch

from inference.gradients.alternatives import alternatives, own_gradient
from inference.gradients.comparison import Grids, compare, gradient_draws
from inference.gradients.estimators import (
    GradientEstimator,
    balanced_estimator,
    estimators,
    exact_router_gradient,
    routing_estimator,
)
from inference.gradients.problem import (
    Problem,
    Setting,
    balanced_objective,
    exact_balanced_gradient,
    exact_gradient,
    gated_objective,
    parameters,
    router_objective,
)
from inference.registry import Objective
from inference.registry.builtin import REGISTRY
from prob_moe.distributions import CapacitySkip, GumbelMatching
from prob_moe.rules import DenseMixture, RoutingRule, SparsityConstrainedTransport
from prob_moe.testing import central_difference, exact_balanced_objective

SMALL = Setting(n=4, k=2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The problems are too small to share, and threads that wait for one another take far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def identity(estimator: GradientEstimator) -> str:
    return f"{estimator.name}-{estimator.baseline}"


OF_THE_BOUND = [row for row in estimators() if row.objective is Objective.MIXTURE]


@pytest.mark.parametrize("estimator", OF_THE_BOUND, ids=identity)
def test_the_mixture_bound_is_hit_and_is_not_the_routers(estimator: GradientEstimator) -> None:
    """Where the procedure has a law by enumeration; with the procedure held fixed, as the bound's docstring says."""
    frame = compare([("base", Setting(n=4, k=3))], [estimator], num_samples=4000)
    known = estimator.name != "dependent-rounding-mixture-bound"
    assert (frame.bias_se < 5).all() if known else frame.bias_se.isna().all()
    assert (frame.router_bias_se > 5).all()
    assert (frame.variance > 0).all()


@pytest.mark.parametrize(
    "estimator", [row for row in estimators() if row.name not in {bound.name for bound in OF_THE_BOUND}], ids=identity
)
def test_unbiased_estimators_pass_and_their_biased_twins_fail(estimator: GradientEstimator) -> None:
    frame = compare([("base", SMALL)], [estimator], num_samples=4000)
    router = frame.set_index("part").loc["router"]
    assert (router.bias_se > 5) == estimator.biased
    assert frame.bias_se[frame.part == "experts"].item() < 5 or estimator.biased
    assert router.objective == estimator.objective


@pytest.mark.parametrize(
    "objective",
    [
        router_objective,
        gated_objective,
        partial(balanced_objective, CapacitySkip),
        partial(balanced_objective, GumbelMatching),
    ],
)
def test_exact_gradients_are_finite_differences(objective: Callable) -> None:
    """Along a random direction of every parameter."""
    problem = Problem.of(SMALL)
    mixture = problem.mixture()
    for parameter, gradient in zip(parameters(mixture), exact_gradient(problem, objective), strict=True):
        start, direction = parameter.detach().clone(), torch.randn_like(parameter)

        def value(point: torch.Tensor, parameter: torch.Tensor = parameter) -> torch.Tensor:
            parameter.copy_(point)
            return objective(mixture, problem.x, problem.y)

        slope = central_difference(value, start, direction)
        assert slope.agrees_with(float((gradient * direction).sum())), slope
        assert slope.error < 1e-5 * (1 + abs(slope.value))
        with torch.no_grad():
            value(start)


@pytest.mark.parametrize("name", ["skip", "gumbel-matching"])
def test_the_enumerated_balanced_objective_is_the_librarys(name: str) -> None:
    problem = Problem.of(SMALL)
    mixture = problem.mixture()
    mixture.assignment = REGISTRY.procedures[name].make
    ours = balanced_objective(REGISTRY.procedures[name].make, mixture, problem.x, problem.y)
    torch.testing.assert_close(ours, exact_balanced_objective(mixture, problem.x, problem.y))


def test_the_gated_objective_is_not_the_routers() -> None:
    problem = Problem.of(SMALL)
    gated, router = exact_gradient(problem, gated_objective), exact_router_gradient(problem)
    assert all((a - b).norm() > 0.1 * b.norm() for a, b in zip(gated, router, strict=True))


def test_without_enumeration_the_bias_is_unknown() -> None:
    assert exact_balanced_gradient(Problem.of(Setting()), CapacitySkip) is None
    frame = compare([("base", Setting())], [balanced_estimator("skip", CapacitySkip, "none")], num_samples=100)
    assert frame[["bias_se", "bias_fraction", "mean_cosine", "relative_variance"]].isna().all(axis=None)
    assert frame.router_bias_se.notna().all()


def test_leave_one_out_is_judged_at_equal_cost() -> None:
    """With two particles and no baseline the variance halves, and equal cost makes it whole again."""
    estimator = routing_estimator("skip", CapacitySkip, "leave-one-out")
    draws = gradient_draws(Problem.of(SMALL), estimator, 500)
    router = torch.cat([draws[0].flatten(1), draws[1].flatten(1)], -1)
    row = compare([("base", SMALL)], [estimator], num_samples=500).set_index("part").loc["router"]
    assert row.variance == pytest.approx(2 * float(router.var(0).sum()) / SMALL.n)


def test_draws_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    estimator = routing_estimator("skip", CapacitySkip, "none")
    first, second = (gradient_draws(Problem.of(SMALL), estimator, 100)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_property_varies_at_a_time() -> None:
    settings = Grids(n=(32, 64), k=(4,), capacity_factor=(1.0, 2.0), sharpness=(1.0,), imbalance=(0.0,)).settings()
    assert [varies for varies, _ in settings] == ["base", "n", "capacity_factor", "small"]
    assert settings[1][1] == Setting(64, 4, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("alternative", alternatives(), ids=lambda a: f"{a.name}-{a.objective}")
def test_alternatives_hit_their_own_objective_and_miss_stochastic_ones(alternative: GradientEstimator) -> None:
    frame = compare([("base", Setting(n=6, k=3))], [alternative], num_samples=1000)
    row = frame.set_index("part").loc["router"]
    assert (row.bias_se > 5) == alternative.biased
    assert (row.variance == 0) == alternative.deterministic
    assert frame.router_bias_se.notna().all()


def test_an_output_that_jumps_has_no_gradient_to_compare_with() -> None:
    """At strong regularisation the sparse plan sits at ties."""

    def make(problem: Problem) -> RoutingRule:
        return SparsityConstrainedTransport(num_selected=2, regularization=10.0)

    assert own_gradient(Problem.of(Setting()), make) is None
    assert own_gradient(Problem.of(Setting()), lambda problem: DenseMixture()) is not None
