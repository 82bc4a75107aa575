"""
The alternatives: deterministic or biased ways to route, for comparison. One file each, one interface.

A :class:`Router` turns router logits into a :class:`Routing`, whose ``output(experts, x)`` uses the same expert layer
as the mixture. REINFORCE with a learned baseline and without capacity (RL-R) is no file here: it is
:class:`~prob_moe.distributions.IndependentRouting` in a mixture with a module for a baseline.
"""

from prob_moe.routers.base import Router, Routing, SparseRouting, within_capacity
from prob_moe.routers.base_layer import BASELayer
from prob_moe.routers.expert_choice import ExpertChoice, SlotRouting
from prob_moe.routers.losses import load_balancing_loss, z_loss
from prob_moe.routers.sigma_moe import SigmaMoE
from prob_moe.routers.sinkhorn import SinkhornBASE, sinkhorn_log_plan
from prob_moe.routers.smear import SMEAR, MergedRouting
from prob_moe.routers.soft_moe import SoftMoE, SoftRouting
from prob_moe.routers.sparsity_constrained import SparsityConstrainedTransport

__all__ = [
    "SMEAR",
    "BASELayer",
    "ExpertChoice",
    "MergedRouting",
    "Router",
    "Routing",
    "SigmaMoE",
    "SinkhornBASE",
    "SlotRouting",
    "SoftMoE",
    "SoftRouting",
    "SparseRouting",
    "SparsityConstrainedTransport",
    "load_balancing_loss",
    "sinkhorn_log_plan",
    "within_capacity",
    "z_loss",
]
