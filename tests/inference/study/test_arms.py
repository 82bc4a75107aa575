"""Every arm trains, towards the objective that it names."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch

from inference.study.arms import Arm, Group, all_arms
from inference.study.learners import ExpectationMaximisation, GatedLearner, ImportanceWeighted, MixtureLearner
from inference.study.problems import Problem, toy_problem
from inference.study.settings import ToyRun
from inference.training.trainer import steps
from models.piecewise import StackedLinear
from prob_moe.distributions import IndependentRouting
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.rules import RoutingRule
from tests.estimators.replicas import standard_errors_off

ARMS = all_arms()
# Stacks of seeds give many draws of the same gradient: the same data and parameters in every one.
STACK = 3000
EVERY = pytest.mark.parametrize("arm", ARMS.values(), ids=lambda arm: arm.name)


def problem(arm: Arm, **options: float) -> Problem:
    settings = {"learning_rate": 0.1, "load_balancing": 0.0, "num_seeds": 10} | options
    given = toy_problem(ToyRun(arm.name, **settings))
    return replace(given, wide=partial(one_of_ten_units, given)) if arm.needs_hidden else given


def one_of_ten_units(given: Problem) -> MixtureOfExperts:
    """One expert that could be two of five units, if those of the toy had any."""
    stack = given.train[1].shape[:-1]
    return MixtureOfExperts(
        StackedLinear(stack, 1, 1),
        BatchedExperts(1, 1, 10, 1, batch_shape=stack),
        given.mixture.likelihood,
        assignment=IndependentRouting,
        capacity_factor=1.0,
    )


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_registry_names_objectives() -> None:
    for name, arm in ARMS.items():
        assert arm.name == name
        assert arm.objective
    assert {arm.group for arm in ARMS.values()} == set(Group)


def test_every_alternative_has_an_arm() -> None:
    def leaves(kind: type[RoutingRule]) -> set[type[RoutingRule]]:
        return {kind} | set().union(*(leaves(sub) for sub in kind.__subclasses__()))

    routers = {kind for kind in leaves(RoutingRule) if kind.__module__.startswith("prob_moe.")} - {RoutingRule}
    learners = (arm.build(problem(arm, num_seeds=2)) for arm in ARMS.values())
    assert {type(learner.layer.rule) for learner in learners if isinstance(learner, GatedLearner)} == routers


@EVERY
def test_training_lowers_the_arm_s_own_loss(arm: Arm) -> None:
    given = problem(arm, load_balancing=0.1)
    learner = arm.build(given)
    losses = []
    for _, loss in steps(learner, lambda: learner.loss(*given.train), num_steps=25, learning_rate=0.05):
        losses.append(loss)
        learner.after_step()
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@EVERY
def test_predictive_is_normalised_and_shaped_by_seed(arm: Arm) -> None:
    given = problem(arm, num_seeds=3)
    learner = arm.build(given)
    x = given.test[0][:, :8]
    # At steps of one standard deviation, the trapezoidal rule is exact to 1e-8 for Gaussians.
    values = torch.linspace(-6, 6, 121)
    with torch.no_grad():
        density = torch.stack([learner.log_predictive(x, y.expand(3, 8)) for y in values]).exp()
        assert learner.serve(x).shape == (3, 8, 1)
    torch.testing.assert_close(torch.trapezoid(density, values, dim=0), torch.ones(3, 8), atol=1e-4, rtol=0)


def exact_gradients(given: Problem) -> list[torch.Tensor]:
    mixture = given.mixture
    objective = mixture.router_objective(*given.train).sum() / given.train[1].shape[-1]
    return list(torch.autograd.grad(-objective, list(mixture.parameters())))


@pytest.mark.parametrize(
    "arm",
    [arm for arm in ARMS.values() if arm.group in (Group.ROUTER, Group.TWIN) and arm.name != "rl-r"],
    ids=lambda arm: arm.name,
)
@pytest.mark.usefixtures("double")
def test_unbiased_arms_are_unbiased_and_biased_twins_are_not(arm: Arm) -> None:
    given = problem(arm, num_seeds=STACK, num_datapoints=20, break_at=0.3)
    one = tuple(tensor[:1].expand_as(tensor) for tensor in given.train)
    given = Problem(**(vars(given) | {"train": one}))
    mixture = given.mixture
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
        mixture.router.bias += torch.tensor([0.5, -0.5])
    exact = exact_gradients(given)
    learner = arm.build(given)
    assert isinstance(learner, (MixtureLearner, GatedLearner))
    drawn = torch.autograd.grad(learner.loss(*given.train), list(mixture.parameters()))
    off = max(standard_errors_off(g, e[0]) for g, e in zip(drawn, exact))
    assert (off < 5) == (arm.group is Group.ROUTER)


def likelihood_gradients(given: Problem, bound: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """Of a function of log p_ij + log p(y_i | j), (*, n, k) -> (*, n), summed in units per datapoint."""
    mixture = given.mixture
    x, y = given.train
    joint = mixture.router(x).log_softmax(-1) + mixture.log_likelihoods(x, y)
    return list(torch.autograd.grad(-bound(joint).mean(-1).sum(), list(mixture.parameters())))


@pytest.mark.parametrize(
    "name",
    [
        "exact-marginal",
        "em",
        "dependent-rounding-mixture-bound",
        "dependent-rounding-guided-bound",
        "unlimited-rounding-mixture-bound",
    ],
)
@pytest.mark.usefixtures("double")
def test_of_two_experts_both_give_the_likelihood_and_its_gradient(name: str) -> None:
    """EM too, where the responsibilities are those of the present parameters (Fisher's identity)."""
    given = problem(ARMS[name])
    exact = likelihood_gradients(given, lambda joint: joint.logsumexp(-1))
    learner = ARMS[name].build(given)
    assert isinstance(learner, MixtureLearner)
    found = torch.autograd.grad(learner.loss(*given.train), list(given.mixture.parameters()))
    for gradient, expected in zip(found, exact):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.usefixtures("double")
def test_em_holds_its_responsibilities() -> None:
    given = problem(ARMS["em"])
    learner = ExpectationMaximisation(given.mixture, hold=2)
    x, y = given.train
    responsibilities = given.mixture.responsibilities(x, y).detach()
    learner.loss(x, y)
    with torch.no_grad():
        given.mixture.router.bias += torch.tensor([1.0, -1.0])
    held = likelihood_gradients(given, lambda joint: (responsibilities * joint).sum(-1))
    renewed = likelihood_gradients(given, lambda joint: joint.logsumexp(-1))
    assert not torch.allclose(held[0], renewed[0])
    for expected in (held, renewed):
        found = torch.autograd.grad(learner.loss(x, y), list(given.mixture.parameters()))
        assert all(torch.allclose(gradient, e) for gradient, e in zip(found, expected))


@pytest.mark.parametrize("score", [True, False])
@pytest.mark.usefixtures("double")
def test_the_importance_weighted_bound_needs_its_score(score: bool) -> None:
    given = problem(ARMS["iwae"], num_seeds=STACK, num_datapoints=20, break_at=0.3)
    one = tuple(tensor[:1].expand_as(tensor) for tensor in given.train)
    mixture = given.mixture
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    x, y = one
    log_p = mixture.router(x).log_softmax(-1)
    f = mixture.log_likelihoods(x, y)
    pairs = (f.unsqueeze(-1).logaddexp(f.unsqueeze(-2)) - math.log(2)) * (
        log_p.unsqueeze(-1) + log_p.unsqueeze(-2)
    ).exp()
    exact = torch.autograd.grad(-pairs.sum((-2, -1)).mean(-1).sum(), list(mixture.parameters()))
    learner = ImportanceWeighted(mixture)
    if not score:
        mixture.router.requires_grad_(False)
    parameters = [p for p in mixture.parameters() if p.requires_grad]
    drawn = iter(torch.autograd.grad(learner.loss(x, y), parameters))
    found = [next(drawn) if p.requires_grad else torch.zeros_like(p) for p in mixture.parameters()]
    off = max(standard_errors_off(g, e[0]) for g, e in zip(found, exact))
    assert (off < 5) == score


@EVERY
def test_load_balancing_pulls_at_every_router(arm: Arm) -> None:
    """At equal draws, its gradient is that of the loss with a weight minus that of the loss without."""
    gradients = []
    for weight in (0.0, 1.0):
        given = problem(arm, load_balancing=weight, num_seeds=2)
        router = given.mixture.router
        with torch.no_grad():
            router.bias += torch.tensor([1.0, 0.0])
        learner = arm.build(given)
        torch.manual_seed(0)
        learner.loss(*given.train).backward()
        gradients.append(torch.zeros_like(router.bias) if router.bias.grad is None else router.bias.grad)
    towards_balance = gradients[1] - gradients[0]
    if arm.name.startswith("sparsemixer"):
        # Outside its window of nearly equal logits the probabilities are 0 and 1, without a gradient.
        assert (towards_balance == 0).all()
        return
    if arm.group is Group.FIXED:
        # Nobody learns to route.
        assert (towards_balance == 0).all()
        return
    if arm.name == "top-2-gates":
        # The loads of two choices among two experts are balanced, whatever the router says.
        assert (towards_balance.abs() < 1e-6).all()
        return
    assert (towards_balance[..., 0] > 0).all()
    assert (towards_balance[..., 1] < 0).all()


def test_alternatives_serve_every_datapoint_with_their_best_expert() -> None:
    """Training drops beyond the capacity; serving does not, and leaves the router's options as they were."""
    arm = ARMS["switch"]
    given = problem(arm, num_seeds=2)
    with torch.no_grad():
        given.mixture.router.bias += torch.tensor([9.0, 0.0])
    learner = arm.build(given)
    assert isinstance(learner, GatedLearner)
    x, rule = given.train[0], learner.layer.rule
    assert rule is not None
    with torch.no_grad():
        assert (learner.serve(x) != 0).all()
        in_training = learner.layer(x)
    assert (in_training == 0).sum() == 2 * 50
    assert rule.training
    assert rule.capacity_factor == 1.0
