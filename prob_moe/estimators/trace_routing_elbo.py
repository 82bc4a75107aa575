"""The router objective as a Pyro ELBO: unbiased gradients through importance-weighted assignments."""

from collections.abc import Iterator
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
from prob_moe.estimators.reruns import Rerun
from prob_moe.estimators.sites import (
    Program,
    Site,
    assignment_sites,
    check_single,
    data_plate,
    ordinary_sites,
    per_datapoint,
    present_datapoints,
)
from prob_moe.estimators.surrogate_elbo import SurrogateELBO, add_scores, add_sites


@dataclass
class RoutedData:
    """What one trace says of the datapoints; all tensors are lined up with the plates."""

    #: f_i, the log-probability of everything in the data plate, with gradient
    cost: Tensor
    #: product of the importance weights of all assignment sites, without gradient
    weight: Tensor
    #: by assignment site: router log-probability log p_i(z_i), who is no padding, and the baseline asked for
    log_p: dict[str, Tensor]
    present: dict[str, Tensor]
    baselines: dict[str, Any]
    #: the data plate
    frame: CondIndepStackFrame


class TraceRouting_ELBO(SurrogateELBO):
    r"""
    Unbiased gradients of the *router objective*

    .. math:: R(\theta) = \sum_i E_{z_i \sim p_i}[f_i(z_i)],

    whatever :class:`~prob_moe.distributions.AssignmentDistribution` draws the assignment. Here :math:`f_i` is the
    log-probability of all that stands in the data plate of datapoint i: datapoints route independently, and the
    capacity-limited procedure is a proposal with weights :math:`w_i`. The surrogate is

    .. math:: \sum_i \mathrm{sg}(w_i)\,[\, f_i + \mathrm{sg}(f_i - b_i) \log p_i(z_i) \,],

    with the baseline :math:`b_i` *inside* the weight: outside of it, where Pyro's own ELBOs put it, the estimator is
    biased for procedures under which the score :math:`\nabla\log p_i(z_i)` has not mean zero.

    **Model.** Assignment sites stand outside the data plate (a plate of size n); they need not appear in the guide,
    which may be None where they are all that is latent. Where the guide draws them, from another router q, :math:`f_i`
    includes :math:`\log p_i(z_i) - \log q_i(z_i)`, scaled as the site is by ``poutine.scale``, and as the data plate is
    by its subsample. With several assignment sites (layers) the weights multiply. All other sites are treated as in
    :class:`~pyro.infer.Trace_ELBO`, with :math:`\sum_i w_i f_i` as the log-likelihood. The joint ``log_prob`` of an
    assignment site is never evaluated.

    **Assumption.** Datapoints interact through the capacity only. Where they interact otherwise (attention, batch
    normalisation), or a site outside the data plate depends on an assignment, the estimate is biased: use the balanced
    objective there (:class:`~prob_moe.estimators.TraceBalanced_ELBO`). Under Pyro's validation every model is checked
    once, by running it again, twice: for dependence outside the plate, and with two datapoints' experts swapped, which
    nobody else may notice.

    **Baselines** are read from ``infer={"baseline": ...}`` of an assignment site: a
    :class:`~prob_moe.estimators.Baseline`, or Pyro's dict of options with ``use_leave_one_out_baseline``, see
    :class:`~prob_moe.estimators.BaselineOptions`.

    Source: Kool, Maddison & Mnih (2021), "Unbiased Gradient Estimation with Balanced Assignments for Mixtures of
    Experts".

    :param weighted: whether to weight. Without, every processed datapoint counts 1: the biased twin, for comparison.
    :param kwargs: ``num_particles``, ``vectorize_particles``, ``max_plate_nesting``, ``retain_graph`` as in Pyro.
    :raises ValueError: if an assignment site has no data plate, a baseline option is unknown, or datapoints are found
        to meet.
    """

    def __init__(self, *, weighted: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weighted = weighted
        self._capacity_only = CapacityOnly(type(self).__name__)

    def _check(self, model: Program, rerun: Rerun, model_trace: Trace, guide_trace: Trace) -> None:
        check_baselines(guide_trace)
        self._capacity_only(model, rerun, model_trace)

    def _elbo(self, model_trace: Trace, guide_trace: Trace) -> Any:
        return self._particle(model_trace, guide_trace)[0]

    def _elbo_and_surrogate(self, traces: Iterator[tuple[Trace, Trace]]) -> tuple[Any, Any]:
        elbo: Any = 0.0
        surrogate: Any = 0.0
        routed = []
        for model_trace, guide_trace in traces:
            particle, particle_surrogate, data = self._particle(model_trace, guide_trace)
            elbo = elbo + particle
            surrogate = surrogate + particle_surrogate
            routed.append(data)
        if routed[0] is not None:
            # All particles at once, since leave-one-out baselines compare them.
            surrogate = surrogate + self._routed_surrogate(routed[0] if self._particles_in_plate else _stack(routed))
        return elbo, surrogate

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any, Any]:
        """The ELBO of a trace, the surrogate of all that is not routed, and what is."""
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
        sites = assignment_sites(model_trace)
        if not sites:
            return None, ()
        for name, site in sites.items():
            check_single(name, site)
        frames = {name: data_plate(model_trace, name, site) for name, site in sites.items()}
        frame = next(iter(frames.values()))
        if len(set(frames.values())) > 1:
            raise ValueError(f"all assignment sites must share one data plate, got {frames}")
        dim = frame.dim
        weight, log_p, present, baselines, routing_terms = None, {}, {}, {}, []
        for name, model_site in sites.items():
            # The guide's router is the proposal's where it draws the site; else the model's is.
            site = guide_trace.nodes.get(name, model_site)
            own = per_datapoint(self._weights(site), dim)
            weight = own if weight is None else weight * own
            log_p[name] = per_datapoint(site["fn"].router_log_prob(site["value"]), dim)
            present[name] = present_datapoints(site, dim)
            baselines[name] = site["infer"].get("baseline")
            if site is not model_site:
                prior = per_datapoint(model_site["fn"].router_log_prob(model_site["value"]), dim)
                routing_terms += [_scaled(prior, model_site, frame), -_scaled(log_p[name], site, frame)]
        assert weight is not None
        terms = [*routing_terms, *_plate_terms(model_trace, guide_trace, frame)]
        cost = _sum_to(terms, weight)
        # Where the weight is 0, nothing counts: not even an infinite cost.
        cost = torch.where(weight > 0, cost, torch.zeros_like(cost))
        stack = (*next(iter(sites.values()))["cond_indep_stack"], frame)
        return RoutedData(cost, weight, log_p, present, baselines, frame), stack

    def _weights(self, site: Site) -> Tensor:
        routing, value = site["fn"], site["value"]
        if self.weighted:
            return routing.importance_weights(value).detach()
        return routing.processed(value).to(routing.logits.dtype)

    def _routed_surrogate(self, data: RoutedData) -> Tensor:
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


def _plate_terms(model_trace: Trace, guide_trace: Trace, frame: CondIndepStackFrame) -> list[Tensor]:
    """log p - log q of everything in the data plate."""
    model_terms = [site["log_prob"] for site in _sites_in_plate(model_trace, frame).values()]
    return model_terms + [-site["log_prob"] for site in _sites_in_plate(guide_trace, frame).values()]


def _sum_to(terms: list[Tensor], like: Tensor) -> Tensor:
    """The sum of the terms for every datapoint: plates inside the data plate are summed out."""
    total = sum(terms[1:], terms[0])
    return total.expand(torch.broadcast_shapes(total.shape, like.shape)).sum_to_size(like.shape)


def _stack(particles: list[RoutedData]) -> RoutedData:
    return RoutedData(
        cost=torch.stack([p.cost for p in particles]),
        weight=torch.stack([p.weight for p in particles]),
        log_p={name: torch.stack([p.log_p[name] for p in particles]) for name in particles[0].log_p},
        present={name: torch.stack([p.present[name] for p in particles]) for name in particles[0].present},
        # One network predicts for all particles.
        baselines=particles[0].baselines,
        frame=particles[0].frame,
    )
