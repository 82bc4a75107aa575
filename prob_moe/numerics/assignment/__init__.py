"""Exact assignment within capacity: the solver, and the exchange graph of what it returns."""
