"""Expert layers in Pyro: every procedure under the ELBOs of all objectives, against exact gradients."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer
from prob_moe.mixture import MixtureOfExperts
from prob_moe.testing import exact_balanced_objective, exact_mixture_bound, gradient_report

N, K, D = 3, 3, 2
PROCEDURES = [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding]


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(N, D, dtype=torch.float64), torch.randn(N, dtype=torch.float64)


def normal(out: Tensor) -> Normal:
    return Normal(out.squeeze(-1), 1.0)


class OneLayer(PyroModule):
    """A layer, and a likelihood of what it puts out."""

    def __init__(self, assignment: Any, capacity: int, **options: Any) -> None:
        super().__init__()
        experts = BatchedExperts(K, D, None, 1, dtype=torch.float64)
        self.layer = ExpertLayer(nn.Linear(D, K).double(), experts, assignment, capacity=capacity, **options)

    def forward(self, x: Tensor, y: Tensor) -> None:
        out = self.layer(x)
        with pyro.plate("data", N):
            pyro.sample("y", normal(out), obs=y)


class BeforeAMixture(PyroModule):
    """A layer of one expert for each, and a mixture of several."""

    def __init__(self, assignment: Any, num_selected: int | None) -> None:
        super().__init__()
        first, last = (BatchedExperts(K, D, None, out, dtype=torch.float64) for out in (D, 1))
        self.layer = ExpertLayer(nn.Linear(D, K).double(), first, assignment, capacity=2)
        self.mixture = MixtureOfExperts(
            *(nn.Linear(D, K).double(), last, normal),
            assignment=IndependentRouting,
            capacity_factor=float(K),
            num_selected=num_selected,
        )

    def forward(self, x: Tensor, y: Tensor) -> None:
        self.mixture(self.layer(x), y)

    def exact(self, x: Tensor, y: Tensor, bound: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sum over the layer's experts of p times what is expected of the mixture, which no neighbour touches."""
        p, hidden = self.layer.router(x).softmax(-1), self.layer.experts.dense(x)
        total = torch.zeros((), dtype=torch.float64)
        for i, j in product(range(N), range(K)):
            h = hidden[i : i + 1, j]
            total = total + p[i, j] * bound(h, y[i : i + 1])
        return total

    def exact_mixture(self, x: Tensor, y: Tensor) -> Tensor:
        mixture = self.mixture
        return self.exact(*(x, y), lambda h, y: exact_mixture_bound(mixture.routing(h), mixture.log_likelihoods(h, y)))

    def exact_router(self, x: Tensor, y: Tensor) -> Tensor:
        return self.exact(x, y, self.mixture.router_objective)


@pytest.mark.parametrize("assignment", PROCEDURES)
@pytest.mark.parametrize("num_selected", [None, 2])
def test_router_objective(assignment: type, num_selected: int | None) -> None:
    net, (x, y) = BeforeAMixture(assignment, num_selected), data()
    report = gradient_report(
        net, None, TraceRouting_ELBO(), x, y, exact=net.exact_router, parameters=net, num_samples=200
    )
    assert report.unbiased, report


@pytest.mark.parametrize("assignment", PROCEDURES)
def test_mixture_bound_behind_a_layer(assignment: type) -> None:
    net, (x, y) = BeforeAMixture(assignment, 2), data()
    report = gradient_report(
        net, None, TraceMixture_ELBO(), x, y, exact=net.exact_mixture, parameters=net, num_samples=200
    )
    assert report.unbiased, report


@pytest.mark.parametrize(
    ("assignment", "options"),
    [
        (IndependentRouting, {}),
        (CapacitySkip, {}),
        (GumbelMatching, {}),
        (IndependentRouting, {"num_selected": 2, "combine": "gates"}),
        (CapacitySkip, {"num_selected": 2, "combine": "gates"}),
    ],
)
def test_balanced_objective(assignment: type, options: dict) -> None:
    net, (x, y) = OneLayer(assignment, 2, **options), data()
    report = gradient_report(
        *(net, None, TraceBalanced_ELBO(), x, y),
        exact=lambda x, y: exact_balanced_objective(net, x, y),
        parameters=net,
        num_samples=200,
    )
    assert report.unbiased, report


def test_another_objective_fails_the_same_check() -> None:
    torch.manual_seed(3)
    net, (x, y) = BeforeAMixture(CapacitySkip, 2), data()
    report = gradient_report(
        net, None, TraceMixture_ELBO(), x, 3 * y, exact=net.exact_router, parameters=net, num_samples=200
    )
    assert report.worst > 8
