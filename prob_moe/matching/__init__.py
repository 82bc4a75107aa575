"""Combinatorial numerics on plain tensors: assignment, exchange graph, price densities, marginals, rounding."""

from prob_moe.matching.marginals import MinimumVarianceMarginals, minimum_variance_marginals, router_marginals
from prob_moe.matching.rounding import dependent_rounding

__all__ = ["MinimumVarianceMarginals", "dependent_rounding", "minimum_variance_marginals", "router_marginals"]
