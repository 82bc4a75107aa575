"""Combinatorial numerics on plain tensors: assignment, exchange graph, price densities, marginals, rounding."""

from prob_moe.matching.assignment import Matching, solve_assignment
from prob_moe.matching.exchange import exchange_costs, shadow_prices, shortest_distances
from prob_moe.matching.marginals import MinimumVarianceMarginals, minimum_variance_marginals, router_marginals
from prob_moe.matching.rounding import dependent_rounding

__all__ = [
    "Matching",
    "MinimumVarianceMarginals",
    "dependent_rounding",
    "exchange_costs",
    "minimum_variance_marginals",
    "router_marginals",
    "shadow_prices",
    "shortest_distances",
    "solve_assignment",
]
