"""Experts on many processes, with the same numbers on any number of them.

A global batch is cut into :class:`Groups`, each routed by itself; an :class:`~prob_moe.layer.ExpertLayer` with a
``mesh`` keeps the experts of its process (:class:`ParallelExperts`) and sends datapoints to those of others; draws
depend on :class:`~prob_moe.distributions.KeyedDraws`, whose step the training loop advances; and losses are local sums
over the global number of datapoints, whose gradients :func:`sum_gradients` adds up. Started by ``torchrun``:

.. code-block:: python

    mesh = expert_mesh(num_experts=8)
    groups = Groups(4, mesh)
    draws = groups.keyed_draws(seed=0)
    torch.manual_seed(0)  # the same network in all processes
    layer = ExpertLayer(None, BatchedExperts(8, 16, 32, 16), DependentRounding, capacity_factor=1.0, mesh=mesh)
    optimizer = torch.optim.Adam(layer.parameters())
    for step, (x, y) in enumerate(batches):  # the same in all processes
        own_x, own_y, mask = groups.cut(x, y)
        with draws.step(step), record_routing() as routed:
            losses = (layer(own_x, mask) - own_y).square().sum(-1).masked_fill(~mask, 0.0)
            (routed.surrogate(losses).sum() / len(x)).backward()
        sum_gradients(layer)
        clip_grad_norm_(layer, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        layer.update()

**When to use it:** when the experts, or a batch, do not fit one device. Where they fit, one process does the same with
less: empty slots travel too, and every layer waits twice for the slowest process, forward and backward.

**What is the same on any number of processes**, to rounding: draws exactly, outputs, losses, gradients, norms and
optimiser steps, within one type of device. What decides by a comparison of numbers (a draw, a maximum) can flip where
they nearly tie, in float32 sooner than in float64. What torch's own generator draws within a group, such as dropout,
differs. A process that leaves a step early, by an error for one, lets the others wait for the limit of the process
group (``init_process_group(timeout=...)``).
"""

from prob_moe.parallel.experts import ParallelExperts
from prob_moe.parallel.gradients import clip_grad_norm_, data_parallel, expert_parameters, sum_gradients
from prob_moe.parallel.groups import Groups
from prob_moe.parallel.mesh import expert_mesh
from prob_moe.parallel.state import full_state_dict, gather_experts, load_full_state_dict

__all__ = [
    "Groups",
    "ParallelExperts",
    "clip_grad_norm_",
    "data_parallel",
    "expert_mesh",
    "expert_parameters",
    "full_state_dict",
    "gather_experts",
    "load_full_state_dict",
    "sum_gradients",
]
