"""The router objective as a Pyro ELBO: unbiased gradients through importance-weighted assignments."""

import warnings
from typing import Any

from pyro.poutine import Trace
from torch import Tensor

from prob_moe.estimators.functional import selected_surrogate
from prob_moe.estimators.per_datapoint_elbo import PerDatapointELBO
from prob_moe.estimators.set_site import SetSite
from prob_moe.estimators.sites import Site, outside_plate


class TraceRouting_ELBO(PerDatapointELBO):
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
    nobody else may notice; ``check_meeting=False`` takes the biased surrogate that is left without the assumption.

    **Several experts per datapoint.** The last assignment site may select m of them (``num_selected``), whose
    likelihoods enter through a :class:`~prob_moe.distributions.SelectedMixture` at an observed site in the data plate,
    as in ``MixtureOfExperts(num_selected=m)``. With :math:`f_{ij}` its log-likelihood under expert j, and what else
    stands in the plate outside of the sum, the estimate of R is :math:`\sum_i \sum_{j \in S_i} w_{ij} f_{ij}`, and
    its score part comes from pairs, without any baseline:

    .. math:: \tfrac{1}{2} \sum_{a \ne b \in S_i} \frac{p_{ia}\, p_{ib}}{\pi_{iab}}\, (f_{ia} - f_{ib})\,
        \nabla(\log p_{ia} - \log p_{ib}).

    Where a procedure knows no inclusion probabilities of pairs (``DependentRounding``), and with ``num_selected=1``, it
    is :math:`\sum_j w_{ij} f_{ij} \nabla\log p_{ij}`, unbiased too but noisier, and a warning says so once.

    **Baselines** are read from ``infer={"baseline": ...}`` of an assignment site: a
    :class:`~prob_moe.estimators.Baseline`, or Pyro's dict of options with ``use_leave_one_out_baseline``, see
    :class:`~prob_moe.estimators.BaselineOptions`.

    Source: Kool, Maddison & Mnih (2021), "Unbiased Gradient Estimation with Balanced Assignments for Mixtures of
    Experts".

    :param weighted: whether to weight. Without, every processed datapoint counts 1: the biased twin, for comparison.
    :param kwargs: ``check_meeting`` as said above; ``num_particles``, ``vectorize_particles``, ``max_plate_nesting``,
        ``retain_graph`` as in Pyro.
    :raises ValueError: if an assignment site has no data plate, a baseline option is unknown, or datapoints are found
        to meet.
    """

    def __init__(self, *, weighted: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weighted = weighted
        self._warned_of_pairs = False

    def _weights(self, site: Site) -> Tensor:
        routing, value = site["fn"], site["value"]
        if self.weighted:
            return routing.importance_weights(value).detach()
        return routing.processed(value).to(routing.logits.dtype)

    def _set_site(self, model_trace: Trace, guide_trace: Trace) -> SetSite | None:
        several = super()._set_site(model_trace, guide_trace)
        if several is None:
            return None
        if several.guide_site is not None:
            raise ValueError(
                f"the guide draws assignment site {several.name!r}, which selects several experts per datapoint: leave "
                "it out of the guide, or use TraceMixture_ELBO"
            )
        if not self.weighted:
            raise ValueError(
                f"weighted=False has no meaning for assignment site {several.name!r}, which selects several experts "
                "per datapoint; it is for num_selected=None"
            )
        return several

    def _set_term(self, several: SetSite) -> Tensor:
        mixture = several.mixture
        return several.scaled(
            selected_surrogate(
                mixture.selected_log_prob(several.likelihood["value"]),
                mixture.log_weights.exp(),
                mixture.router_log_prob,
                self._pair_weights(several),
            )
        )

    def _pair_weights(self, several: SetSite) -> Tensor | None:
        routing = several.site["fn"]
        name = type(routing).__name__
        reason = f"{name} knows no inclusion probabilities of pairs"
        if routing.num_selected == 1:
            reason = "num_selected=1 makes no pairs"
        else:
            try:
                return outside_plate(routing.pair_weights(several.site["value"]), event_dim=3)
            except NotImplementedError:
                pass
        if not self._warned_of_pairs:
            self._warned_of_pairs = True
            warnings.warn(
                f"assignment site {several.name!r}: {reason}, so the score part of the router objective is "
                "sum_j w_j f_j grad log p_j, unbiased but noisier than that of pairs; IndependentRouting and "
                "CapacitySkip with num_selected >= 2 know pairs, and TraceMixture_ELBO needs none",
                stacklevel=2,
            )
        return None
