"""What a router can do wrong, in numbers: load, drops, use of experts, weights, responsibilities."""

from prob_moe.diagnostics.measures import (
    LEAST_TAIL,
    LEAST_WEIGHTS,
    agreement,
    dead_experts,
    drop_rate,
    effective_experts,
    effective_sample_size,
    max_mean_load,
    pareto_k,
    responsibility_entropy,
    router_entropy,
    usage_perplexity,
)
from prob_moe.diagnostics.recording import RoutingDiagnostics, RoutingRecorder, routing_diagnostics

__all__ = [
    "LEAST_TAIL",
    "LEAST_WEIGHTS",
    "RoutingDiagnostics",
    "RoutingRecorder",
    "agreement",
    "dead_experts",
    "drop_rate",
    "effective_experts",
    "effective_sample_size",
    "max_mean_load",
    "pareto_k",
    "responsibility_entropy",
    "router_entropy",
    "routing_diagnostics",
    "usage_perplexity",
]
