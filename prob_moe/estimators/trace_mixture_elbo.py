"""A lower bound of the mixture's own likelihood as a Pyro ELBO: several experts per datapoint, no score function."""

import torch
from pyro.poutine import Trace
from torch import Tensor

from prob_moe.distributions import SelectedMixture
from prob_moe.estimators.per_datapoint_elbo import PerDatapointELBO
from prob_moe.estimators.set_site import SetSite
from prob_moe.estimators.sites import Site, assignment_sites, outside_plate


class TraceMixture_ELBO(PerDatapointELBO):
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

    **Model.** One assignment site with ``num_selected`` >= 2 outside the data plate, whose experts enter through a
    :class:`~prob_moe.distributions.SelectedMixture` at an observed site in the data plate, as in
    ``MixtureOfExperts(num_selected=m)``. Assignment sites before it (layers) have one expert per datapoint, and enter
    as in :class:`~prob_moe.estimators.TraceRouting_ELBO`, with weights, scores and baselines, and the bound of a
    datapoint as its cost. All other sites are treated as in :class:`~pyro.infer.Trace_ELBO`, and stand outside the
    logarithm of the sum; scales, masks, subsampling and batch plates act on the bound of a datapoint.
    The joint ``log_prob`` of the assignment is never evaluated, and the model runs once per particle.

    **A guide** may draw the site, from a router :math:`q(z \mid x, y)` and a procedure of its own: then
    :math:`w_{ij} = p_{ij} / \pi_{ij}` with the inclusion probabilities (and :math:`\kappa`) of the guide, which is
    trained by the responsibilities, :math:`\frac{1}{\kappa_i} \sum_j \omega_{ij} \nabla\log q_{ij}`: the wake-phase
    update of reweighted wake-sleep, which moves q towards the posterior over experts, and is no gradient of the bound.

    **Assumption.** Datapoints meet through the capacity only, which is checked once under Pyro's validation, as in
    :class:`~prob_moe.estimators.TraceRouting_ELBO`.

    At m = 1 < k the router's gradient would know nothing of y: ``loss`` gives the value, gradients are refused.

    :param kwargs: ``num_particles``, ``vectorize_particles``, ``max_plate_nesting``, ``retain_graph`` as in Pyro.
    :raises ValueError: if the model has no such site, or several, or one after it; if datapoints are found to meet.
    :raises NotImplementedError: on a gradient at m = 1 < k.
    """

    def _weights(self, site: Site) -> Tensor:
        weights: Tensor = site["fn"].importance_weights(site["value"])
        return weights.detach()

    def _set_site(self, model_trace: Trace, guide_trace: Trace) -> SetSite:
        several = super()._set_site(model_trace, guide_trace)
        if several is None:
            raise ValueError(
                "TraceMixture_ELBO wants an assignment site with num_selected >= 2, but the model has "
                f"{sorted(assignment_sites(model_trace)) or 'none'} without num_selected; use TraceRouting_ELBO for "
                "one expert per datapoint"
            )
        return several

    def _set_term(self, several: SetSite) -> Tensor:
        if torch.is_grad_enabled():
            _refuse_one_of_many(several)
        if several.guide_site is None:
            bound: Tensor = several.likelihood["log_prob"]
            return bound
        return several.scaled(_proposed_by(several.guide_site, several).log_prob(several.likelihood["value"]))


def _proposed_by(guide_site: Site, several: SetSite) -> SelectedMixture:
    """The mixture with weights and keep probability of the guide that drew, whose router learns with the model's."""
    mixture, guide, value = several.mixture, guide_site["fn"], guide_site["value"]
    log_q = outside_plate(guide.router_log_prob(value), event_dim=2)
    log_inclusion = log_q.detach() - outside_plate(guide.log_importance_weights(value), event_dim=2)
    log_p = mixture.router_log_prob
    return SelectedMixture(
        (log_p.detach() - log_inclusion).to(log_p.dtype),
        log_p + (log_q - log_q.detach()),
        mixture.components,
        keep_probability=outside_plate(guide.keep_probability(value), event_dim=1).expand(mixture.batch_shape),
    )


def _refuse_one_of_many(several: SetSite) -> None:
    routing = several.drawn["fn"]
    if routing.num_selected == 1 < routing.num_experts:
        raise NotImplementedError(
            f"assignment site {several.name!r} has num_selected=1 of {routing.num_experts} experts: the bound's "
            "gradient would teach the router nothing of y; use num_selected >= 2, or TraceRouting_ELBO with "
            "num_selected=None (loss gives the value)"
        )
