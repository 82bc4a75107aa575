"""
An expert layer in Pyro, and a mixture of several experts behind it: what has no counterpart in plain torch, against
exact gradients. All else is in the table of test_every_routing.py.
"""

from itertools import product
from typing import Any

import pytest
import torch
from pyro.distributions import Normal
from pyro.nn import PyroModule
from torch import Tensor, nn

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer
from prob_moe.mixture import MixtureOfExperts
from prob_moe.testing import gradient_report

N, K, D = 3, 3, 2
PROCEDURES = [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding]


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(N, D, dtype=torch.float64), torch.randn(N, dtype=torch.float64)


def normal(out: Tensor) -> Normal:
    return Normal(out.squeeze(-1), 1.0)


class BeforeAMixture(PyroModule):
    """A layer of one expert for each, and a mixture of several."""

    def __init__(self, assignment: Any) -> None:
        super().__init__()
        first, last = (BatchedExperts(K, D, None, out, dtype=torch.float64) for out in (D, 1))
        self.layer = ExpertLayer(nn.Linear(D, K).double(), first, assignment, capacity=2)
        self.mixture = MixtureOfExperts(
            *(nn.Linear(D, K).double(), last, normal),
            assignment=IndependentRouting,
            capacity_factor=float(K),
            num_selected=2,
        )

    def forward(self, x: Tensor, y: Tensor) -> None:
        self.mixture(self.layer(x), y)

    def exact(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum over the layer's experts of p times what is expected of the mixture, which no neighbour touches."""
        p, hidden = self.layer.router(x).softmax(-1), self.layer.experts.dense(x)
        total = torch.zeros((), dtype=torch.float64)
        for i, j in product(range(N), range(K)):
            total = total + p[i, j] * self.mixture.router_objective(hidden[i : i + 1, j], y[i : i + 1])
        return total


@pytest.mark.parametrize("assignment", PROCEDURES)
def test_the_router_objective_of_several_experts(assignment: type) -> None:
    net, (x, y) = BeforeAMixture(assignment), data()
    report = gradient_report(net, None, TraceRouting_ELBO(), x, y, exact=net.exact, parameters=net, num_samples=200)
    assert report.unbiased, report


def test_another_objective_fails_the_same_check() -> None:
    torch.manual_seed(3)
    net, (x, y) = BeforeAMixture(CapacitySkip), data()
    report = gradient_report(net, None, TraceMixture_ELBO(), x, 3 * y, exact=net.exact, parameters=net, num_samples=200)
    assert report.worst > 8
