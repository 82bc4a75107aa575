"""Combinatorial numerics on plain tensors: assignment, exchange graph, price densities, marginals, rounding."""

from prob_moe.matching.assignment import Matching, solve_assignment
from prob_moe.matching.exchange import exchange_costs, shadow_prices, shortest_distances

__all__ = ["Matching", "exchange_costs", "shadow_prices", "shortest_distances", "solve_assignment"]
