"""Batched experts: datapoints in, an assignment, every expert applied to its own datapoints, results back in place.

The way of the data has four steps, all at fixed shapes, so that nothing waits for the host and the whole compiles to
one graph:

1. :func:`dispatch_plan` turns an assignment (*batch, n) into slots: datapoint i sits in slot (e, s) of expert e.
2. :func:`dispatch` gathers the datapoints by expert, (*batch, n, d) → (*batch, k, c, d).
3. :func:`expert_forward` applies every expert to its c slots as one batched matrix product.
4. :func:`combine` gathers the results back, (*batch, k, c, d) → (*batch, n, d).

:class:`BatchedExperts` holds the parameters and runs all four. Without a capacity, where the loads may be looked at, it
may sort the datapoints by expert instead, and multiply each expert's rows by its own weights: no slot stays empty, and
the shapes follow the data. Dimensions: n datapoints, k experts, c slots per expert
(its capacity), d features.
"""

from prob_moe.experts.any_form import ModuleExperts, SlotExperts, StackedExperts
from prob_moe.experts.base import Experts
from prob_moe.experts.functional import batched_linear, expert_forward
from prob_moe.experts.gather import combine, dispatch
from prob_moe.experts.layer import BatchedExperts, BatchedLinear
from prob_moe.experts.plan import DispatchPlan, dispatch_plan

__all__ = [
    "BatchedExperts",
    "BatchedLinear",
    "DispatchPlan",
    "Experts",
    "ModuleExperts",
    "SlotExperts",
    "StackedExperts",
    "batched_linear",
    "combine",
    "dispatch",
    "dispatch_plan",
    "expert_forward",
]
