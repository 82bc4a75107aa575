"""Combinatorial numerics on plain tensors: assignment, exchange graph, price densities, marginals, rounding."""

from prob_moe.matching.assignment import Matching, solve_assignment
from prob_moe.matching.conditional_poisson import (
    log_elementary_symmetric,
    log_inclusion_probabilities,
    log_pair_probabilities,
    sample_conditional_poisson,
)
from prob_moe.matching.exchange import exchange_costs, shadow_prices, shortest_distances
from prob_moe.matching.likelihood import matching_log_prob
from prob_moe.matching.marginals import MinimumVarianceMarginals, minimum_variance_marginals, router_marginals
from prob_moe.matching.partial import solve_partial_assignment
from prob_moe.matching.price_density import PriceStructure, price_log_density, price_structure
from prob_moe.matching.rounding import dependent_rounding
from prob_moe.matching.sparse_transport import SparsePlan, sparse_transport

__all__ = [
    "Matching",
    "MinimumVarianceMarginals",
    "PriceStructure",
    "SparsePlan",
    "dependent_rounding",
    "exchange_costs",
    "log_elementary_symmetric",
    "log_inclusion_probabilities",
    "log_pair_probabilities",
    "matching_log_prob",
    "minimum_variance_marginals",
    "price_log_density",
    "price_structure",
    "router_marginals",
    "sample_conditional_poisson",
    "shadow_prices",
    "shortest_distances",
    "solve_assignment",
    "solve_partial_assignment",
    "sparse_transport",
]
