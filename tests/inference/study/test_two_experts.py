"""Two experts of every datapoint: all that can be drawn, against the objective itself."""

import math
from collections.abc import Callable, Iterator
from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from inference.study.learners import ImportanceWeighted, SumAndSample, UnorderedSet
from inference.study.learners.sum_and_sample import keep_and_draw
from inference.study.learners.unordered_set import draw_two, log_of_the_others
from inference.study.problems import Problem, pieces_problem
from inference.study.settings import PiecesRun
from prob_moe.testing.statistics import deviation

K, N = 4, 5
Drawing = UnorderedSet | SumAndSample | ImportanceWeighted
#: every draw for every datapoint, and its probability there, (draws, 2) and (n, k) -> (draws, n)
Law = Callable[[Tensor], tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def problem() -> Problem:
    given = pieces_problem(PiecesRun("exact-gradient", 0.1, 0.0, num_seeds=2, num_pieces=K, num_datapoints=N))
    with torch.no_grad():  # favourites of their own, and not all alike
        last = given.mixture.router[-1]
        last.weight.mul_(6.0)
        last.bias.add_(torch.tensor([1.0, 0.0, -1.0, 0.5]))
    return given


def every_set(probability: Callable[[Tensor, int, int], Tensor]) -> Law:
    def law(p: Tensor) -> tuple[Tensor, Tensor]:
        sets = list(combinations(range(K), 2))
        chosen = torch.tensor(sets)[:, :, None, None].expand(-1, -1, *p.shape[:-1]).movedim(1, -2)
        return chosen, torch.stack([probability(p, a, b) for a, b in sets])

    return law


def plackett_luce(p: Tensor, a: int, b: int) -> Tensor:
    """One first, then the other from what is left."""
    p_a, p_b = p[..., a], p[..., b]
    return p_a * p_b / (1 - p_a) + p_b * p_a / (1 - p_b)


def conditional_poisson(p: Tensor, a: int, b: int) -> Tensor:
    pairs = sum(p[..., i] * p[..., j] for i, j in combinations(range(K), 2))
    return p[..., a] * p[..., b] / pairs


def the_rest(p: Tensor) -> tuple[Tensor, Tensor]:
    """The favourite, and another one in proportion to p."""
    top = p.argmax(-1)
    others = torch.stack([(top + shift) % K for shift in range(1, K)])
    probability = p.expand(K - 1, *p.shape).gather(-1, others.unsqueeze(-1)).squeeze(-1)
    return torch.stack([top.expand(others.shape), others], -2), probability / probability.sum(0)


def uniform_rest(p: Tensor) -> tuple[Tensor, Tensor]:
    chosen, probability = the_rest(p)
    return chosen, torch.full_like(probability, 1 / (K - 1))


def every_pair(p: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent draws, in their order."""
    pairs = list(product(range(K), repeat=2))
    chosen = torch.tensor(pairs)[:, :, None, None].expand(-1, -1, *p.shape[:-1]).movedim(1, -2)
    return chosen, torch.stack([p[..., a] * p[..., b] for a, b in pairs])


def uniform_pair(p: Tensor) -> tuple[Tensor, Tensor]:
    return every_pair(torch.full_like(p, 1 / K))


def router_objective(log_p: Tensor, f: Tensor) -> Tensor:
    return (log_p.exp() * f).sum()


def bound_of_two(log_p: Tensor, f: Tensor) -> Tensor:
    p = log_p.exp()
    means = f.unsqueeze(-1).logaddexp(f.unsqueeze(-2)) - math.log(2)
    return (p.unsqueeze(-1) * p.unsqueeze(-2) * means).sum()


#: the learner, the law of its draws, another law, and its objective
CASES: dict[str, tuple[Callable[..., Drawing], Law, Law, Callable[[Tensor, Tensor], Tensor]]] = {
    "unordered set": (UnorderedSet, every_set(plackett_luce), every_set(conditional_poisson), router_objective),
    "sum and sample": (SumAndSample, the_rest, uniform_rest, router_objective),
    "IWAE": (ImportanceWeighted, every_pair, uniform_pair, bound_of_two),
}


def expected(learner: Drawing, problem: Problem, law: Law) -> tuple[Tensor, list[Tensor]]:
    """The mean over all draws of the estimate and of its gradient: router first, then experts."""
    mixture = problem.mixture
    x, y = problem.train
    log_p = mixture.router(x).log_softmax(-1)
    chosen, probability = law(log_p.detach().exp())
    torch.testing.assert_close(probability.sum(0), torch.ones_like(y))
    each = torch.stack([learner.surrogate(x, y, draw, log_p) for draw in chosen])
    mean = (probability * each).sum()
    return mean.detach(), list(torch.autograd.grad(mean, list(mixture.parameters())))


@pytest.mark.parametrize("name", CASES)
def test_the_mean_over_all_draws_is_the_objective_and_its_gradient(name: str, problem: Problem) -> None:
    """To the last digits with the law of the draws; and not with another law."""
    kind, law, other, objective_of = CASES[name]
    mixture = problem.mixture
    x, y = problem.train
    objective = objective_of(mixture.router(x).log_softmax(-1), mixture.log_likelihoods(x, y))
    exact = torch.autograd.grad(objective, list(mixture.parameters()))

    def errors(law: Law) -> list[float]:
        value, gradients = expected(kind(mixture), problem, law)
        of_gradients = [float((found - true).norm() / true.norm()) for found, true in zip(gradients, exact)]
        return [abs(float(value / objective.detach()) - 1), *of_gradients]

    assert max(errors(law)) < 1e-10
    assert min(errors(other)) > 1e-4


@pytest.mark.parametrize("name", ["unordered set", "sum and sample"])
def test_a_constant_cost_moves_no_router(name: str, problem: Problem) -> None:
    """In no draw: the baseline is built in."""
    kind, law, _, _ = CASES[name]
    mixture = problem.mixture
    x, y = problem.train
    router = list(mixture.router.parameters())

    def gradients(shift: float) -> list[Tensor]:
        likelihood = mixture.likelihood
        mixture.likelihood = lambda out: Shifted(likelihood(out), shift)
        log_p = mixture.router(x).log_softmax(-1)
        chosen, _ = law(log_p.detach().exp())
        found = torch.autograd.grad(kind(mixture).surrogate(x, y, chosen[0], log_p).sum(), router)
        mixture.likelihood = likelihood
        return list(found)

    for shifted, plain in zip(gradients(1000.0), gradients(0.0)):
        torch.testing.assert_close(shifted, plain)


class Shifted:
    """A likelihood times a constant."""

    def __init__(self, law: torch.distributions.Distribution, shift: float) -> None:
        self.law, self.shift = law, shift

    def log_prob(self, y: Tensor) -> Tensor:
        return self.law.log_prob(y) + self.shift


LOG_P = torch.tensor([1.5, 0.0, -1.0, 0.5], dtype=torch.float64).log_softmax(-1)


def test_gumbel_top_2_has_the_law_of_plackett_and_luce() -> None:
    drawn = draw_two(LOG_P.expand(40_000, K))
    seen = torch.nn.functional.one_hot(drawn, K).sum(0).double()
    pairs = torch.stack([seen[:, a] * seen[:, b] for a, b in combinations(range(K), 2)], -1)
    chances = torch.stack([plackett_luce(LOG_P.exp(), a, b) for a, b in combinations(range(K), 2)])
    others = torch.stack([conditional_poisson(LOG_P.exp(), a, b) for a, b in combinations(range(K), 2)])
    assert deviation(pairs, chances).worst()[0] < 5
    assert deviation(pairs, others).worst()[0] > 5


def test_the_favourite_is_kept_and_the_other_drawn_from_the_rest() -> None:
    kept, drawn = keep_and_draw(LOG_P.expand(40_000, K)).unbind(-2)
    assert (kept == 0).all()
    rest = LOG_P.exp() * torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    assert (drawn != 0).all()
    assert deviation(torch.nn.functional.one_hot(drawn, K).double()[:, 1:], rest[1:] / rest.sum()).worst()[0] < 5


def test_a_saturated_router_loses_no_digits() -> None:
    """In float32 1 - p of its favourite would be 0."""
    logits = torch.tensor([[60.0, 1.0, 0.0, 0.5]])
    chosen = torch.tensor([[0], [1]])
    single, double = (log_of_the_others(logits.to(d).log_softmax(-1), chosen) for d in (torch.float32, torch.float64))
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-5)
    assert -60 < single[0, 0] < -50
