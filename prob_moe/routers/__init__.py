"""
The alternatives: deterministic or biased ways to route, for comparison. One file each, one interface.

A :class:`Router` turns router logits into a :class:`Routing`, whose ``output(experts, x)`` uses the same expert layer
as the mixture. REINFORCE with a learned baseline and without capacity (RL-R) is no file here: it is
:class:`~prob_moe.distributions.IndependentRouting` in a mixture with a module for a baseline.
"""

from prob_moe.routers.base import Router, Routing, SparseRouting, within_capacity
from prob_moe.routers.losses import load_balancing_loss, z_loss

__all__ = ["Router", "Routing", "SparseRouting", "load_balancing_loss", "within_capacity", "z_loss"]
