"""Checks of a model before it trains."""

from typing import Any

import torch
from pyro import poutine
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import get_provenance
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from prob_moe.estimators.sites import Program, assignment_sites, data_plate, ordinary_sites


def check_baselines(guide_trace: Trace) -> None:
    """
    :raises ValueError: if an ordinary site asks for a baseline, which would be silently ignored.
    """
    for name, site in ordinary_sites(guide_trace).items():
        if site["infer"].get("baseline"):
            raise ValueError(f"site {name!r} asks for a baseline, which is read at assignment sites only")


def check_dependence(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """
    Run the model once, under provenance tracking, and see that assignments act through their data plate only.

    The random state and the gradients are left as they were.

    :raises ValueError: if the log-probability of a site outside the data plate depends on an assignment.
    """
    with torch.no_grad(), torch.random.fork_rng(), poutine.block(), TrackNonReparam():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    trace = prune_subsample_sites(model_trace)
    assignments = assignment_sites(trace)
    for name, site in assignments.items():
        frame = data_plate(trace, name, site)
        for other_name, other in ordinary_sites(trace).items():
            if frame in other["cond_indep_stack"]:
                continue
            with torch.no_grad():
                log_prob = other["fn"].log_prob(other["value"])
            dependent = get_provenance(log_prob) & set(assignments)
            if dependent:
                raise ValueError(
                    f"site {other_name!r} depends on the assignment {sorted(dependent)} but stands outside its data "
                    f"plate {frame.name!r}, where the router objective does not reach: put it into the plate, or "
                    "detach it (pyro.ops.provenance.detach_provenance) if no gradient is meant to flow there"
                )
