"""
The alternatives: deterministic or biased ways to route, for comparison. One file each, one interface.

A :class:`Router` turns router logits into a :class:`Routing`, whose ``output(experts, x)`` uses the same expert layer
as the mixture. REINFORCE with a learned baseline and without capacity (RL-R) is no file here: it is
:class:`~prob_moe.distributions.IndependentRouting` in a mixture with a module for a baseline.
"""

from prob_moe.routers.base import Router, Routing, SparseRouting, top_choices, within_capacity
from prob_moe.routers.base_layer import BASELayer
from prob_moe.routers.dense import DenseMixer, DenseMixture, DenseRouting
from prob_moe.routers.expert_choice import ExpertChoice, SlotRouting
from prob_moe.routers.gumbel_softmax import GumbelSoftmax
from prob_moe.routers.hash_routing import HashRouting
from prob_moe.routers.loss_free_bias import LossFreeBias
from prob_moe.routers.losses import load_balancing_loss, z_loss
from prob_moe.routers.sampled_gate import SampledGate
from prob_moe.routers.sigma_moe import SigmaMoE
from prob_moe.routers.sinkhorn import SinkhornBASE, sinkhorn_log_plan
from prob_moe.routers.smear import SMEAR, MergedRouting
from prob_moe.routers.soft_moe import SoftMoE, SoftRouting
from prob_moe.routers.sparse_mixer import SparseMixer, SparseMixerV2
from prob_moe.routers.sparsity_constrained import SparsityConstrainedTransport
from prob_moe.routers.straight_through import StraightThroughRouting
from prob_moe.routers.switch import Switch

__all__ = [
    "SMEAR",
    "BASELayer",
    "DenseMixer",
    "DenseMixture",
    "DenseRouting",
    "ExpertChoice",
    "GumbelSoftmax",
    "HashRouting",
    "LossFreeBias",
    "MergedRouting",
    "Router",
    "Routing",
    "SampledGate",
    "SigmaMoE",
    "SinkhornBASE",
    "SlotRouting",
    "SoftMoE",
    "SoftRouting",
    "SparseMixer",
    "SparseMixerV2",
    "SparseRouting",
    "SparsityConstrainedTransport",
    "StraightThroughRouting",
    "Switch",
    "load_balancing_loss",
    "sinkhorn_log_plan",
    "top_choices",
    "within_capacity",
    "z_loss",
]
