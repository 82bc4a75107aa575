"""Combinatorial numerics on plain tensors: assignment, exchange graph, price densities, marginals, rounding."""

from prob_moe.numerics.assignment.exchange import exchange_costs, shadow_prices, shortest_distances
from prob_moe.numerics.assignment.partial import solve_partial_assignment
from prob_moe.numerics.assignment.solve import Matching, solve_assignment
from prob_moe.numerics.conditional_poisson import (
    log_elementary_symmetric,
    log_inclusion_probabilities,
    log_pair_probabilities,
    sample_conditional_poisson,
)
from prob_moe.numerics.prices.density import PriceStructure, price_log_density, price_structure
from prob_moe.numerics.prices.estimate import METHODS
from prob_moe.numerics.prices.likelihood import MatchingLikelihood, matching_likelihood, matching_log_prob
from prob_moe.numerics.rounding.marginals import MinimumVarianceMarginals, minimum_variance_marginals, router_marginals
from prob_moe.numerics.rounding.rounding import dependent_rounding
from prob_moe.numerics.transport.sinkhorn import sinkhorn_log_plan
from prob_moe.numerics.transport.sparse_transport import SparsePlan, sparse_transport, transport_rows

__all__ = [
    "METHODS",
    "Matching",
    "MatchingLikelihood",
    "MinimumVarianceMarginals",
    "PriceStructure",
    "SparsePlan",
    "dependent_rounding",
    "exchange_costs",
    "log_elementary_symmetric",
    "log_inclusion_probabilities",
    "log_pair_probabilities",
    "matching_likelihood",
    "matching_log_prob",
    "minimum_variance_marginals",
    "price_log_density",
    "price_structure",
    "router_marginals",
    "sample_conditional_poisson",
    "shadow_prices",
    "shortest_distances",
    "sinkhorn_log_plan",
    "solve_assignment",
    "solve_partial_assignment",
    "sparse_transport",
    "transport_rows",
]
