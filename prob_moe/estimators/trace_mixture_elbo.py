"""A lower bound of the mixture's own likelihood as a Pyro ELBO: several experts per datapoint, no score function."""

from collections.abc import Iterator
from typing import Any

from pyro.infer.util import MultiFrameTensor
from pyro.poutine import Trace

from prob_moe.distributions import SelectedMixture
from prob_moe.estimators.checks import CapacityOnly
from prob_moe.estimators.reruns import Rerun
from prob_moe.estimators.sites import Program, Site, assignment_sites, ordinary_sites
from prob_moe.estimators.surrogate_elbo import SurrogateELBO, add_scores, add_sites


class TraceMixture_ELBO(SurrogateELBO):
    r"""
    The *mixture bound*

    .. math::
        M(\theta) = \sum_i E\Big[\frac{1\{\text{kept}\}}{\kappa_i}
        \log\Big(\kappa_i \sum_{j \in S_i} w_{ij}\, e^{f_{ij}}\Big)\Big]
        \;\le\; \sum_i \log \sum_j p_{ij}\, e^{f_{ij}},

    from m distinct experts per datapoint that an assignment distribution with ``num_selected`` = m selects within
    capacity. It is an equality where all experts are selected.

    The estimated *gradient* holds the procedure fixed as a proposal: responsibilities among the selected experts times
    :math:`\nabla(\log p_{ij} + f_{ij})`. No score function, no baseline. All it asks of a procedure are inclusion
    probabilities, so :class:`~prob_moe.distributions.DependentRounding`, which has no law, serves.

    **Model.** One assignment site with ``num_selected`` >= 2 outside the data plate, left to the model, whose experts
    enter through a :class:`~prob_moe.distributions.SelectedMixture` at an observed site in the data plate, as in
    ``MixtureOfExperts(num_selected=m)``. All other sites are treated as in :class:`~pyro.infer.Trace_ELBO`, and stand
    outside the logarithm of the sum; scales, masks, subsampling and batch plates act on the bound of a datapoint.
    The joint ``log_prob`` of the assignment is never evaluated, and the model runs once per particle.

    **Assumption.** Datapoints meet through the capacity only, which is checked once under Pyro's validation, as in
    :class:`~prob_moe.estimators.TraceRouting_ELBO`.

    At m = 1 < k the router's gradient would know nothing of y: :meth:`loss` gives the value, gradients are refused.

    :param kwargs: ``num_particles``, ``vectorize_particles``, ``max_plate_nesting``, ``retain_graph`` as in Pyro.
    :raises ValueError: if the model has no such site, or several, or the guide draws it; if datapoints are found to
        meet.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._capacity_only = CapacityOnly(type(self).__name__)

    def _check(self, model: Program, rerun: Rerun, model_trace: Trace, guide_trace: Trace) -> None:
        self._capacity_only(model, rerun, model_trace)

    def _left_out(self, model_trace: Trace, guide_trace: Trace) -> list[str]:
        return [_set_valued_site(model_trace, guide_trace)[0]]

    def _elbo(self, model_trace: Trace, guide_trace: Trace) -> Any:
        return self._terms(model_trace, guide_trace)[0]

    def _elbo_and_surrogate(self, traces: Iterator[tuple[Trace, Trace]]) -> tuple[Any, Any]:
        elbo: Any = 0.0
        surrogate: Any = 0.0
        for model_trace, guide_trace in traces:
            _refuse_one_of_many(*_set_valued_site(model_trace, guide_trace))
            particle, particle_surrogate = self._terms(model_trace, guide_trace)
            elbo, surrogate = elbo + particle, surrogate + particle_surrogate
        return elbo, surrogate

    def _terms(self, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any]:
        log_r = MultiFrameTensor()
        guide_sites = list(ordinary_sites(guide_trace).values())
        elbo, surrogate = add_sites(log_r, ordinary_sites(model_trace).values(), guide_sites)
        return elbo, surrogate + add_scores(log_r, guide_sites)


def _set_valued_site(model_trace: Trace, guide_trace: Trace) -> tuple[str, Site]:
    """
    The assignment site that selects sets of experts.

    :raises ValueError: if the traces are not of a model that the bound is defined for.
    """
    drawn = sorted(assignment_sites(guide_trace))
    if drawn:
        raise ValueError(
            f"the guide draws the assignment sites {drawn}; TraceMixture_ELBO wants the model to draw them: leave "
            "them out of the guide, or use TraceRouting_ELBO for one expert per datapoint"
        )
    sites = assignment_sites(model_trace)
    single = [name for name, site in sites.items() if len(site["fn"].event_shape) == 1]
    if single or len(sites) != 1:
        raise ValueError(
            "TraceMixture_ELBO wants one assignment site, with num_selected >= 2, but the model has "
            f"{sorted(sites) or 'none'}, of which {single or 'none'} without num_selected; use TraceRouting_ELBO for "
            "one expert per datapoint"
        )
    if not any(isinstance(_unwrapped(site["fn"]), SelectedMixture) for site in ordinary_sites(model_trace).values()):
        raise ValueError(
            f"assignment site {next(iter(sites))!r} selects several experts, but no site has a SelectedMixture of "
            "them: observe y with SelectedMixture(log_weights, router_log_prob, likelihood), as MixtureOfExperts does"
        )
    return next(iter(sites.items()))


def _unwrapped(distribution: Any) -> Any:
    while hasattr(distribution, "base_dist") and not isinstance(distribution, SelectedMixture):
        distribution = distribution.base_dist
    return distribution


def _refuse_one_of_many(name: str, site: Site) -> None:
    num_selected, k = site["fn"].event_shape[0], site["fn"].num_experts
    if num_selected == 1 < k:
        raise NotImplementedError(
            f"assignment site {name!r} has num_selected=1 of {k} experts: the bound's gradient would teach the router "
            "nothing of y; use num_selected >= 2, or TraceRouting_ELBO with num_selected=None (loss gives the value)"
        )
