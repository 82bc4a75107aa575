"""To run a program again on the values that it drew, as if nobody had."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from prob_moe.distributions.keyed_draws import particles_kept
from prob_moe.estimators.sites import Program, is_assignment


class Rerun:
    """
    A step's model and guide, to be run again at the values drawn, subsamples included.

    No gradient is recorded; no random number is consumed, of torch, numpy or Python; the buffers and attributes of
    modules are what they were before; outer handlers see nothing. All runs see the same random numbers, so what a
    model draws outside of sites (dropout) is equal in them. Which draws a value depends on is tracked.

    :param model_trace: of the step, with its subsample sites; all parameters exist since then.
    :param guide_trace: likewise.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        model_trace: Trace,
        guide_trace: Trace,
    ) -> None:
        self._programs = ((model, model_trace), (guide, guide_trace))
        self._args, self._kwargs = args, kwargs

    def __call__(self, values: dict[str, Tensor] | None = None) -> tuple[Trace, Trace]:
        """
        :param values: of sites, instead of those drawn.
        :returns: traces of model and guide, with the log-probabilities of all but assignment sites.
        """
        with torch.no_grad(), _random_state_kept(), _modules_kept(), poutine.block(), TrackNonReparam():
            model_trace, guide_trace = (self._trace(program, drawn, values or {}) for program, drawn in self._programs)
            return model_trace, guide_trace

    def _trace(self, program: Program, drawn: Trace, values: dict[str, Tensor]) -> Trace:
        drawn = drawn.copy()
        for name in values.keys() & drawn.nodes.keys():
            drawn.nodes[name] = drawn.nodes[name] | {"value": values[name]}
        recorded = poutine.trace(poutine.replay(program, trace=drawn)).get_trace(*self._args, **self._kwargs)
        trace: Trace = prune_subsample_sites(recorded)
        trace.compute_log_prob(site_filter=lambda name, site: not is_assignment(site))
        return trace


@contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    state = get_rng_state()
    try:
        with torch.random.fork_rng(devices=devices), particles_kept():
            yield
    finally:
        set_rng_state(state)


@contextmanager
def _modules_kept() -> Iterator[None]:
    """Modules that are called run on copies of their buffers, and get back all their attributes afterwards."""
    kept: dict[nn.Module, dict[str, Any]] = {}

    def keep(module: nn.Module, inputs: Any) -> None:
        if module not in kept:
            kept[module] = dict(vars(module))
            # Never written in place: the graph of the step may need the buffers as they are.
            buffers = {name: None if b is None else b.clone() for name, b in module._buffers.items()}
            vars(module)["_buffers"] = buffers

    hook: Callable[..., None] = keep
    handle = register_module_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
        for module, attributes in kept.items():
            vars(module).clear()
            vars(module).update(attributes)
