"""
Two datapoints swap their experts: where datapoints meet through capacity only, nobody else notices.

The loads stay as they are, and, because the two are neighbours among those processed, everybody else keeps the place
that it has among the rows of its expert. All other sites keep the values drawn.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from prob_moe.distributions.draw import Draw, attach, draw_of
from prob_moe.estimators.sites import Site, assignment_sites, ordinary_sites, per_datapoint

#: of a log-probability that was computed twice, in units of the last place
ROUNDING = 1000


@dataclass(frozen=True)
class Swap:
    """
    :param value: of the assignment site, with two datapoints of every batch element swapped where that is possible.
    :param moved: who was, bool (*batch, n).
    """

    value: Tensor
    moved: Tensor


def swap_two(value: Tensor, site: Site) -> Swap | None:
    """
    :param value: of an assignment site, long (*batch, n) or (*batch, m, n).
    :returns: the first two neighbours, of those processed, with different experts change places; None where no batch
        element has such two and a third who could notice.
    """
    value = detach_provenance(value)
    n = value.shape[-1]
    experts = value.clamp(min=-1)
    if site["fn"].num_selected is None:
        experts = experts.unsqueeze(-2)
    processed = (experts >= 0).any(-2)
    position = torch.arange(n, device=value.device).expand(processed.shape)
    # Of those processed, who comes before; n where nobody does.
    latest = torch.where(processed, position, -1).cummax(-1).values
    before = torch.cat([torch.full_like(latest[..., :1], -1), latest[..., :-1]], -1)
    neighbours = experts.gather(-1, before.clamp(min=0).unsqueeze(-2).expand(experts.shape))
    possible = processed & (before >= 0) & (experts != neighbours).any(-2)
    here = possible.any(-1, keepdim=True) & (processed.sum(-1, keepdim=True) > 2)
    if not here.any():
        return None
    second = possible.to(torch.int8).argmax(-1, keepdim=True)
    first = before.gather(-1, second).clamp(min=0)
    is_first, is_second = here & (position == first), here & (position == second)
    index = torch.where(is_first, second, torch.where(is_second, first, position))
    if site["fn"].num_selected is not None:
        index = index.unsqueeze(-2).expand(value.shape)
    swapped, draw = value.gather(-1, index), draw_of(value, Draw)
    if draw is not None:
        # All that others are told by the draw stays.
        log_proposal = draw.log_proposal.gather(-1, index)
        swapped = attach(replace(draw, value=swapped, log_proposal=log_proposal)).value
    return Swap(swapped, is_first | is_second)


def check_swap(
    estimator: str,
    name: str,
    frame: CondIndepStackFrame,
    swap: Swap,
    before: tuple[Trace, Trace],
    after: tuple[Trace, Trace],
) -> bool:
    """
    :param estimator: its name, for the error.
    :param name: of the assignment site at which two were swapped.
    :param frame: the data plate.
    :param before: traces of model and guide at the values drawn.
    :param after: the same with the swap.
    :returns: whether the swap changed anything for the two themselves; else it says nothing of the others.
    :raises ValueError: if the log-probability of another datapoint changed.
    """
    moved = per_datapoint(swap.moved, frame.dim)
    noticed = False
    for old_trace, new_trace in zip(before, after):
        new_terms = _terms(new_trace, name, frame)
        for site_name, old in _terms(old_trace, name, frame).items():
            new = new_terms[site_name]
            unchanged = (new == old) | (new.isnan() & old.isnan())
            change = torch.where(unchanged, torch.zeros_like(old), (new - old).abs())
            own = torch.where(moved & change.isfinite(), change, 0.0).max()
            noticed = noticed or bool(own > 0)
            # What the swap does to the two themselves is the scale of what others might notice.
            tolerance = ROUNDING * torch.finfo(change.dtype).eps * (1 + old.abs() + own)
            wrong = ~moved & ~unchanged & ~(change <= tolerance)
            if wrong.any():
                raise ValueError(
                    f"assignment site {name!r}: the log-probability of other datapoints at site {site_name!r} changes, "
                    f"by {float(change[wrong].max()):.3g} nats, when two datapoints swap their experts, so datapoints "
                    f"meet not through the capacity only (attention, batch normalisation?) and {estimator} is biased; "
                    "use TraceBalanced_ELBO"
                )
    return noticed


def _terms(trace: Trace, swapped: str, frame: CondIndepStackFrame) -> dict[str, Any]:
    """By site the log-probabilities of the datapoints, lined up with their plate."""
    terms = {
        name: site["log_prob"] for name, site in ordinary_sites(trace).items() if frame in site["cond_indep_stack"]
    }
    for name, site in assignment_sites(trace).items():
        if name != swapped:
            log_p = site["fn"].router_log_prob(site["value"])
            several = site["fn"].num_selected is not None
            terms[name] = per_datapoint(log_p.sum(-2) if several else log_p, frame.dim)
    return {name: detach_provenance(term) for name, term in terms.items()}
