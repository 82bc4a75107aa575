"""Mixture-of-experts routing as an explicit random variable, for Pyro."""

__version__ = "0.1.0"
