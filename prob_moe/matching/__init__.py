"""Combinatorial numerics on plain tensors: assignment, exchange graph, price densities, marginals, rounding."""
