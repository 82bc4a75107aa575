"""What the estimators share that go datapoint by datapoint: weights and scores of sites with one expert for each."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import MultiFrameTensor
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from prob_moe.estimators.checks import CapacityOnly, check_baselines
from prob_moe.estimators.functional import router_surrogate
from prob_moe.estimators.particles import OfParticle
from prob_moe.estimators.reruns import Rerun
from prob_moe.estimators.set_site import SetSite, set_site_of
from prob_moe.estimators.sites import (
    Program,
    Site,
    assignment_sites,
    data_plate,
    ordinary_sites,
    per_datapoint,
    present_datapoints,
)
from prob_moe.estimators.surrogate_elbo import SurrogateELBO, add_scores, add_sites


@dataclass
class RoutedData(OfParticle):
    """What one trace says of the datapoints; all tensors are lined up with the plates."""

    common = frozenset({"baselines", "frame"})

    #: f_i, the log-probability of everything in the data plate, with gradient
    cost: Tensor
    #: product of the importance weights of all sites with one expert per datapoint, without gradient
    weight: Tensor
    #: by such site: router log-probability log p_i(z_i), who is no padding, and the baseline asked for
    log_p: dict[str, Tensor]
    present: dict[str, Tensor]
    baselines: dict[str, Any]
    #: the data plate
    frame: CondIndepStackFrame


class PerDatapointELBO(SurrogateELBO):
    """
    An ELBO for datapoints that meet through the capacity only: the cost of each, what stands in its data plate, times
    the product of its importance weights, with a score term for every site that assigns one expert. What a site means
    that selects several, the last one of a network, is said by a subclass.

    :param check_meeting: whether to check that, once for every model, under Pyro's validation. Without, datapoints may
        meet elsewhere too, and the estimate is a surrogate: it gives every datapoint the credit for its own cost alone.
    :param kwargs: as of :class:`~pyro.infer.Trace_ELBO`.
    """

    def __init__(self, *, check_meeting: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._capacity_only = CapacityOnly(type(self).__name__) if check_meeting else None

    @abstractmethod
    def _weights(self, site: Site) -> Tensor:
        """:returns: the importance weights of a site with one expert per datapoint, (*batch, n), no gradient."""

    @abstractmethod
    def _set_term(self, several: SetSite) -> Tensor:
        """:returns: every datapoint's cost under several experts, scaled and masked, (*batch, n), with gradient."""

    def _set_site(self, model_trace: Trace, guide_trace: Trace) -> SetSite | None:
        """:returns: the site that selects several experts, where the estimator takes it."""
        return set_site_of(model_trace, guide_trace)

    def _check(self, model: Program, rerun: Rerun, model_trace: Trace, guide_trace: Trace) -> None:
        check_baselines(guide_trace)
        if self._capacity_only is not None:
            self._capacity_only(model, rerun, model_trace)

    def _elbo(self, model_trace: Trace, guide_trace: Trace) -> Any:
        return self._particle(model_trace, guide_trace)[0]

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any, RoutedData | None]:
        data, stack = self._routed_data(model_trace, guide_trace)
        log_r = MultiFrameTensor()
        guide_sites = ordinary_sites(guide_trace)
        elsewhere = [
            [site for site in sites.values() if data is None or data.frame not in site["cond_indep_stack"]]
            for sites in (ordinary_sites(model_trace), guide_sites)
        ]
        elbo, surrogate = add_sites(log_r, *elsewhere)
        if data is not None:
            weighted = data.weight * data.cost.detach()
            elbo = elbo + weighted.sum()
            log_r.add((stack, weighted))
        return elbo, surrogate + add_scores(log_r, guide_sites.values()), data

    def _routed_data(self, model_trace: Trace, guide_trace: Trace) -> tuple[RoutedData | None, tuple[Any, ...]]:
        several = self._set_site(model_trace, guide_trace)
        sites = assignment_sites(model_trace)
        if not sites:
            return None, ()
        frames = {name: data_plate(model_trace, name, site) for name, site in sites.items()}
        frame = next(iter(frames.values()))
        if len(set(frames.values())) > 1:
            raise ValueError(f"all assignment sites must share one data plate, got {frames}")
        dim = frame.dim
        terms = _plate_terms(model_trace, guide_trace, frame, several)
        if several is not None:
            terms.append(self._set_term(several))
        weight, log_p, present, baselines = None, {}, {}, {}
        for name, model_site in sites.items():
            if several is not None and name == several.name:
                continue
            # The guide's router is the proposal's where it draws the site; else the model's is.
            site = guide_trace.nodes.get(name, model_site)
            own = per_datapoint(self._weights(site), dim)
            weight = own if weight is None else weight * own
            log_p[name] = per_datapoint(site["fn"].router_log_prob(site["value"]), dim)
            present[name] = present_datapoints(site, dim)
            baselines[name] = site["infer"].get("baseline")
            if site is not model_site:
                prior = per_datapoint(model_site["fn"].router_log_prob(model_site["value"]), dim)
                terms += [_scaled(prior, model_site, frame), -_scaled(log_p[name], site, frame)]
        if weight is None:
            first = next(iter(sites.values()))["value"][..., 0, :]
            weight = torch.ones_like(per_datapoint(first, dim), dtype=terms[0].dtype)
        cost = _sum_to(terms, weight)
        # Where the weight is 0, nothing counts: not even an infinite cost.
        cost = torch.where(weight > 0, cost, torch.zeros_like(cost))
        stack = (*next(iter(sites.values()))["cond_indep_stack"], frame)
        return RoutedData(cost, weight, log_p, present, baselines, frame), stack

    def _with_baselines(self, particles: RoutedData) -> Tensor:
        data = particles
        cost, scores, losses = data.cost.detach(), [], torch.zeros((), dtype=data.cost.dtype, device=data.cost.device)
        # Baselines have the datapoints last, wherever their plate stands.
        dim = data.frame.dim
        costs, weights = cost.movedim(dim, -1), data.weight.movedim(dim, -1)
        for name, log_p in data.log_p.items():
            present = data.present[name].expand(cost.shape).movedim(dim, -1)
            baseline, baseline_loss = self.baselines(name, data.baselines[name], costs, weights, present)
            scores.append((log_p, baseline.movedim(-1, dim)))
            losses = losses + baseline_loss
        return router_surrogate(data.cost, data.weight, scores).sum() - losses


def _scaled(log_prob: Tensor, site: Site, frame: CondIndepStackFrame) -> Tensor:
    """
    What Pyro does to the log-probability of a site, done to an assignment's terms by datapoint.

    The site stands outside the data plate, so its own scale knows of ``poutine.scale`` but not of a subsample: each
    datapoint of the plate stands for ``full_size / size`` of them. The score function is never scaled, for what it
    multiplies already is.
    """
    scale = site["scale"] * ((frame.full_size or frame.size) / frame.size)
    scaled: Tensor = scale_and_mask(log_prob, scale, site["mask"])
    return scaled


def _sites_in_plate(trace: Trace, frame: CondIndepStackFrame) -> dict[str, Site]:
    return {name: site for name, site in ordinary_sites(trace).items() if frame in site["cond_indep_stack"]}


def _plate_terms(
    model_trace: Trace, guide_trace: Trace, frame: CondIndepStackFrame, several: SetSite | None
) -> list[Tensor]:
    """log p - log q of everything in the data plate but the likelihood of several experts."""
    model_sites = _sites_in_plate(model_trace, frame)
    if several is not None:
        del model_sites[several.likelihood_name]
    model_terms = [site["log_prob"] for site in model_sites.values()]
    return model_terms + [-site["log_prob"] for site in _sites_in_plate(guide_trace, frame).values()]


def _sum_to(terms: list[Tensor], like: Tensor) -> Tensor:
    """The sum of the terms for every datapoint: plates inside the data plate are summed out."""
    total = sum(terms[1:], terms[0])
    return total.expand(torch.broadcast_shapes(total.shape, like.shape)).sum_to_size(like.shape)
