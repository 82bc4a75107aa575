"""Minimum-variance marginals within capacity, and the dependent rounding that draws assignments with them."""
