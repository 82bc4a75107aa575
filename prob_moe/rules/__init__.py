"""
Rules: deterministic or biased ways to route, for comparison and for the expert layer. One file each, one interface.

A :class:`RoutingRule` turns router logits into a :class:`Routing`, whose ``output(experts, x)`` uses the same expert
layer as the mixture. A *router* is only the network that gives the logits. REINFORCE with a learned baseline and
without capacity (RL-R) is no file here: it is :class:`~prob_moe.distributions.IndependentRouting` in a mixture with a
module for a baseline.
"""

from prob_moe.rules.base import Routing, RoutingRule, SparseRouting, top_choices, within_capacity
from prob_moe.rules.base_layer import BASELayer
from prob_moe.rules.dense import DenseMixer, DenseMixture, DenseRouting
from prob_moe.rules.expert_choice import ExpertChoice, SlotRouting
from prob_moe.rules.gated_sets import GatedSets
from prob_moe.rules.gshard import GShard
from prob_moe.rules.gumbel_softmax import GumbelSoftmax
from prob_moe.rules.hash_routing import HashRouting
from prob_moe.rules.loss_free_bias import LossFreeBias
from prob_moe.rules.losses import load_balancing_loss, z_loss
from prob_moe.rules.quantile_balancing import QuantileBalancing
from prob_moe.rules.random_routing import RandomRouting
from prob_moe.rules.sampled_gate import SampledGate
from prob_moe.rules.sigma_moe import SigmaMoE
from prob_moe.rules.sinkhorn import SinkhornBASE
from prob_moe.rules.smear import SMEAR, MergedRouting
from prob_moe.rules.soft_moe import SoftMoE, SoftRouting
from prob_moe.rules.sparse_mixer import SparseMixer, SparseMixerV2
from prob_moe.rules.sparsity_constrained import SparsityConstrainedTransport
from prob_moe.rules.straight_through import StraightThroughRouting
from prob_moe.rules.switch import Switch
from prob_moe.rules.top_gates import TopGates

__all__ = [
    "SMEAR",
    "BASELayer",
    "DenseMixer",
    "DenseMixture",
    "DenseRouting",
    "ExpertChoice",
    "GShard",
    "GatedSets",
    "GumbelSoftmax",
    "HashRouting",
    "LossFreeBias",
    "MergedRouting",
    "QuantileBalancing",
    "RandomRouting",
    "Routing",
    "RoutingRule",
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
    "TopGates",
    "load_balancing_loss",
    "top_choices",
    "within_capacity",
    "z_loss",
]
