"""Checks of a model under Pyro's validation."""

from weakref import WeakKeyDictionary

import torch
from pyro.ops.provenance import get_provenance
from pyro.poutine import Trace
from pyro.poutine.messenger import unwrap

from prob_moe.estimators.reruns import Rerun
from prob_moe.estimators.sites import Program, assignment_sites, data_plate, ordinary_sites
from prob_moe.estimators.swaps import check_swap, swap_two
from prob_moe.numerics._compiled import leaves_torch


def check_baselines(guide_trace: Trace) -> None:
    """
    :raises ValueError: if an ordinary site asks for a baseline, which would be silently ignored.
    """
    for name, site in ordinary_sites(guide_trace).items():
        if site["infer"].get("baseline"):
            raise ValueError(f"site {name!r} asks for a baseline, which is read at assignment sites only")


def check_dependence(trace: Trace) -> None:
    """
    :param trace: of a model, made by :class:`~prob_moe.estimators.reruns.Rerun`.
    :raises ValueError: if the log-probability of a site outside the data plate depends on an assignment.
    """
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


class CapacityOnly:
    """
    Whether datapoints meet through capacity only, as estimators that go datapoint by datapoint assume.

    It is asked of every model once: under provenance tracking, whether assignments act through their data plate only;
    and for each of its assignment sites, by a swap of two datapoints' experts (:mod:`prob_moe.estimators.swaps`). A
    site at which nothing can be swapped, or where the swap changed nothing at all, is asked again in a later step. What
    is the same for every order of the experts, such as their sum over datapoints, is not seen.
    Models that share their code, such as functions made anew in every step, count as one.

    :param estimator: its name, for errors.
    """

    def __init__(self, estimator: str) -> None:
        self._estimator = estimator
        self._settled: WeakKeyDictionary[object, set[str]] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type["CapacityOnly"], tuple[str]]:
        """A copy knows other models, and checks anew; weak references cannot be pickled."""
        return type(self), (self._estimator,)

    @leaves_torch  # a compiler would look into provenance, and find no bool where Python wants one
    def __call__(self, model: Program, rerun: Rerun, model_trace: Trace) -> None:
        """
        :param rerun: the step's programs.
        :param model_trace: of the step.
        :raises ValueError: if datapoints meet elsewhere; it names the site and what to use instead.
        """
        itself = _itself(model)
        first = itself not in self._settled
        settled = self._settled.setdefault(itself, set())
        sites = assignment_sites(model_trace)
        swaps = {name: swap_two(site["value"], site) for name, site in sites.items() if name not in settled}
        name, swap = next(((name, swap) for name, swap in swaps.items() if swap is not None), (None, None))
        if not (first or swap):
            return
        before = rerun()
        if first:
            check_dependence(before[0])
        if name is not None and swap is not None:
            frame = data_plate(model_trace, name, sites[name])
            if check_swap(self._estimator, name, frame, swap, before, rerun({name: swap.value})):
                settled.add(name)


def _itself(program: Program) -> object:
    """What a program is under the handlers that are wrapped around it in every step."""
    inner: object = unwrap(program)
    inner = inner if callable(inner) else program
    inner = getattr(inner, "__func__", inner)
    return getattr(inner, "__code__", inner)
