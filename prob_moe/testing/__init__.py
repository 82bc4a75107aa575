"""For people who add a distribution, a rule, a baseline or an estimator: one call tells whether it is right."""

from prob_moe.testing.baselines import check_baseline
from prob_moe.testing.clauses import CLAUSES
from prob_moe.testing.clauses.setting import sizes_of_sets
from prob_moe.testing.contract import ClauseResult, ContractError, ContractReport, check_assignment_distribution
from prob_moe.testing.exact import (
    exact_balanced_objective,
    exact_mixture_bound,
    exact_mixture_objective,
    exact_router_objective,
)
from prob_moe.testing.finite_differences import Slope, central_difference
from prob_moe.testing.gradients import gradient_report
from prob_moe.testing.report import GradientReport, GradientRow
from prob_moe.testing.rule_clauses import RULE_CLAUSES
from prob_moe.testing.rules import check_rule

__all__ = [
    "CLAUSES",
    "RULE_CLAUSES",
    "ClauseResult",
    "ContractError",
    "ContractReport",
    "GradientReport",
    "GradientRow",
    "Slope",
    "central_difference",
    "check_assignment_distribution",
    "check_baseline",
    "check_rule",
    "exact_balanced_objective",
    "exact_mixture_bound",
    "exact_mixture_objective",
    "exact_router_objective",
    "gradient_report",
    "sizes_of_sets",
]
