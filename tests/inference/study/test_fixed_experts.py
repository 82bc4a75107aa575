"""What is measured against: experts that nobody learns to choose."""

from dataclasses import replace

import pytest
import torch

from inference.study.arms import all_arms
from inference.study.problems import digits_problem, pieces_problem, toy_problem
from inference.study.settings import DigitsRun, PiecesRun, ToyRun
from inference.training.trainer import steps
from models.piecewise import piecewise_mean
from models.regimes import regime_of

ARMS = all_arms()


@pytest.mark.parametrize("name", ["oracle", "frozen-router", "one-expert"])
def test_the_router_learns_nothing_and_the_experts_of_the_chosen_do(name: str) -> None:
    problem = toy_problem(ToyRun(name, 0.05, 0.0, num_seeds=2))
    learner = ARMS[name].build(problem)
    before = [parameter.clone() for parameter in problem.mixture.router.parameters()]
    list(steps(learner, lambda: learner.loss(*problem.train), num_steps=3, learning_rate=0.05))
    for old, new in zip(before, problem.mixture.router.parameters()):
        assert old.equal(new)


def test_the_oracle_knows_the_pieces() -> None:
    problem = pieces_problem(PiecesRun("oracle", 0.1, 0.0, num_seeds=3, num_pieces=4))
    x, y = problem.train
    assert problem.oracle is not None
    piece = problem.oracle(x)
    for seed in range(3):
        for number in range(4):
            inside = x[seed, piece[seed] == number]
            assert number / 4 <= inside.min()
            assert inside.max() < (number + 1) / 4
    learner = ARMS["oracle"].build(problem)
    list(steps(learner, lambda: learner.loss(x, y), num_steps=300, learning_rate=0.1))
    assert problem.truth is not None
    assert (-learner.log_predictive(*problem.test).mean(-1) < problem.truth(problem.test) + 0.5).all()


def test_the_oracle_of_two_lines_changes_at_the_break() -> None:
    problem = toy_problem(ToyRun("oracle", 0.1, 0.0, num_seeds=1, break_at=0.3))
    x = problem.train[0]
    assert problem.oracle is not None
    left = x[problem.oracle(x) == 0].squeeze(-1)
    torch.testing.assert_close(piecewise_mean(left, 0.3), 0.8 * left - 0.2)


def test_one_expert_is_the_first_and_a_frozen_router_sends_to_its_favourite() -> None:
    problem = toy_problem(ToyRun("one-expert", 0.1, 0.0, num_seeds=2))
    x, mixture = problem.train[0], problem.mixture
    every = mixture.experts.dense(x)
    assert ARMS["one-expert"].build(problem).serve(x).equal(every[..., 0, :])
    favourite = mixture.router(x).argmax(-1)
    chosen = every.gather(-2, favourite[..., None, None]).squeeze(-2)
    torch.testing.assert_close(ARMS["frozen-router"].build(problem).serve(x), chosen)


@pytest.mark.parametrize("name", ["oracle", "frozen-router", "one-expert", "one-wide-expert"])
def test_the_loss_is_that_of_the_experts_of_the_map(name: str) -> None:
    """A loop over datapoints; what other experts would have done is in no gradient."""
    if name == "one-wide-expert":
        problem = digits_problem(DigitsRun(name, 0.1, 0.0))
        problem = replace(problem, train=(problem.train[0][:8], problem.train[1][:8]))
    else:
        problem = pieces_problem(PiecesRun(name, 0.1, 0.0, num_seeds=1, num_datapoints=8))
    learner = ARMS[name].build(problem)
    (x, y), mixture = problem.train, learner.mixture
    mixture.double()
    x, y = x.double(), y.double() if y.is_floating_point() else y
    favourites = mixture.router(x).argmax(-1)
    chosen = {"oracle": problem.oracle, "frozen-router": lambda _: favourites}.get(name)
    z = torch.zeros_like(favourites) if chosen is None else chosen(x)
    f = mixture.log_likelihoods(x, y).flatten(0, -2)
    terms = [f[i, int(e)] for i, e in enumerate(z.flatten())]
    exact = -torch.stack(terms).mean()
    loss = learner.loss(x, y)
    torch.testing.assert_close(loss, exact, rtol=0, atol=1e-10)
    experts = list(mixture.experts.parameters())
    for found, expected in zip(torch.autograd.grad(loss, experts), torch.autograd.grad(exact, experts)):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_where_nobody_knows_there_is_no_oracle() -> None:
    with pytest.raises(ValueError, match="'oracle' needs a task where somebody knows the right experts"):
        ARMS["oracle"].build(digits_problem(DigitsRun("oracle", 0.1, 0.0)))


def test_one_wide_expert_has_the_hidden_units_of_all() -> None:
    problem = digits_problem(DigitsRun("one-wide-expert", 0.1, 0.0))
    learner = ARMS["one-wide-expert"].build(problem)
    wide, narrow = learner.mixture.experts, problem.mixture.experts
    assert narrow.hidden_features is not None
    assert (wide.num_experts, wide.hidden_features) == (1, narrow.num_experts * narrow.hidden_features)
    x, y = problem.train[0][:50], problem.train[1][:50]
    output = wide.dense(x)[..., 0, :]
    torch.testing.assert_close(learner.loss(x, y), -learner.mixture.likelihood(output).log_prob(y).mean())
    before = learner.loss(x, y).item()
    list(steps(learner, lambda: learner.loss(x, y), num_steps=5, learning_rate=0.01))
    assert learner.loss(x, y).item() < before


def test_where_experts_are_linear_there_is_no_wide_one() -> None:
    with pytest.raises(ValueError, match="'one wide expert' needs a task whose experts have hidden units"):
        ARMS["one-wide-expert"].build(toy_problem(ToyRun("one-wide-expert", 0.1, 0.0, num_seeds=2)))
    arm = ARMS["one-wide-expert"]
    assert arm.is_for(DigitsRun("one-wide-expert", 0.1, 0.0))
    assert not arm.is_for(ToyRun("one-wide-expert", 0.1, 0.0))


def test_the_tag_names_the_regime() -> None:
    assert regime_of(torch.cat([torch.full((1, 64), 9.0), torch.tensor([[0.0, 1.0, 0.0]])], -1)).tolist() == [1]
