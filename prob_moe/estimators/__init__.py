"""Estimators that turn a trace with assignment sites into unbiased gradients."""

from prob_moe.estimators.baselines import (
    Baseline,
    DecayingAverage,
    LeaveOneOut,
    Network,
    NoBaseline,
    Predicted,
    Sum,
)
from prob_moe.estimators.functional import balanced_surrogate, router_surrogate, selected_surrogate
from prob_moe.estimators.right_ways import RIGHT_WAYS
from prob_moe.estimators.site_baselines import BaselineOptions
from prob_moe.estimators.trace_balanced_elbo import TraceBalanced_ELBO
from prob_moe.estimators.trace_mixture_elbo import TraceMixture_ELBO
from prob_moe.estimators.trace_routing_elbo import TraceRouting_ELBO

__all__ = [
    "RIGHT_WAYS",
    "Baseline",
    "BaselineOptions",
    "DecayingAverage",
    "LeaveOneOut",
    "Network",
    "NoBaseline",
    "Predicted",
    "Sum",
    "TraceBalanced_ELBO",
    "TraceMixture_ELBO",
    "TraceRouting_ELBO",
    "balanced_surrogate",
    "router_surrogate",
    "selected_surrogate",
]
