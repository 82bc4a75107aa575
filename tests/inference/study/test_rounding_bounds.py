"""The mixture bound of rounded marginals: with two of three experts the marginals are the law of the sets."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from inference.study.arms import all_arms
from inference.study.learners import MixtureLearner
from inference.study.problems import pieces_problem
from inference.study.settings import PiecesRun
from prob_moe.numerics import log_inclusion_probabilities, minimum_variance_marginals
from tests.estimators.replicas import standard_errors_off

N, STACK = 9, 2000


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("name", "capacity"), [("dependent-rounding-mixture-bound", 6), ("unlimited-rounding-mixture-bound", None)]
)
def test_value_and_gradient_are_those_of_all_sets(name: str, capacity: int | None) -> None:
    """In standard errors; and with the marginals of other sets they are not."""
    given = pieces_problem(PiecesRun(name, 0.1, 0.0, num_seeds=STACK, num_pieces=3, num_datapoints=N))
    mixture = given.mixture
    with torch.no_grad():  # the same model and data in the whole stack
        mixture.router[-1].weight.mul_(6.0)
        mixture.router[-1].bias.add_(torch.tensor([1.0, 0.0, -1.0]))
        for parameter in mixture.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    x, y = (part[:1].expand_as(part) for part in given.train)
    learner = all_arms()[name].build(given)
    assert isinstance(learner, MixtureLearner)
    parameters = list(mixture.parameters())
    drawn = torch.autograd.grad(learner.loss(x, y), parameters)

    def off(log_marginals: Tensor) -> float:
        """The gradient of sum_S P(S) log sum_(j in S) p_j / r_j e^f_j, all but p and f held fixed."""
        joint = mixture.router(x).log_softmax(-1) + mixture.log_likelihoods(x, y) - log_marginals
        without = torch.eye(3, dtype=torch.bool)
        of_sets = joint.unsqueeze(-2).masked_fill(without, -torch.inf).logsumexp(-1)
        bound = ((1 - log_marginals.exp()) * of_sets).sum(-1).mean(-1)
        exact = torch.autograd.grad(-bound.sum(), parameters)
        return max(standard_errors_off(ours, whole[0]) for ours, whole in zip(drawn, exact))

    log_p = mixture.router(x[0]).log_softmax(-1)[0].detach()
    marginals = minimum_variance_marginals(log_p, capacity, num_selected=2).log_marginals
    torch.testing.assert_close(marginals.exp().sum(-1), torch.full((N,), 2.0))
    assert off(marginals) < 5
    assert off(log_inclusion_probabilities(log_p, 2)) > 5
