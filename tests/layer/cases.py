"""Every distribution and every rule, and small layers of them."""

import copy
from typing import Any

import torch
from torch import Tensor

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer
from prob_moe.rules import HashRouting, RoutingRule
from tests.rules.test_contract import RULES as RULE_CASES
from tests.rules.test_contract import K

__all__ = ["DISTRIBUTIONS", "RULES", "D", "K", "datapoints", "experts_of", "layer_of", "options_for"]

D = 4
DISTRIBUTIONS: dict[str, type[AssignmentDistribution]] = {
    kind.__name__: kind for kind in (IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding)
}
RULES: dict[str, RoutingRule] = {name: case.make() for name, case in RULE_CASES.items()}


def experts_of() -> BatchedExperts:
    return BatchedExperts(K, D, 5, D, activation=torch.tanh, dtype=torch.float64)


def layer_of(assignment: Any, **options: Any) -> ExpertLayer:
    if isinstance(assignment, RoutingRule):
        # A rule is a module, which each layer has for itself.
        return ExpertLayer(None, experts_of(), copy.deepcopy(assignment), **options)
    return ExpertLayer(None, experts_of(), assignment, **({"capacity_factor": 1.0} | options))


def datapoints(*shape: int) -> Tensor:
    return torch.randn(*shape, D, dtype=torch.float64)


def options_for(assignment: Any, x: Tensor) -> dict[str, Tensor]:
    """What a rule, or a layer's rule, wants to know of the datapoints besides their logits."""
    return {"identity": (x[..., 0].detach() * 1e3).long()} if isinstance(assignment, HashRouting) else {}
