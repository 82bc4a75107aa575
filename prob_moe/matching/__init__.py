"""Combinatorial numerics on plain tensors: assignment, exchange graph, price densities, marginals, rounding."""

from prob_moe.matching.likelihood import matching_log_prob
from prob_moe.matching.price_density import PriceStructure, price_log_density, price_structure

__all__ = ["PriceStructure", "matching_log_prob", "price_log_density", "price_structure"]
