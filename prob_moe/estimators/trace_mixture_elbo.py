"""A lower bound of the mixture's own likelihood as a Pyro ELBO: several experts per datapoint, no score function."""

from typing import Any

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from prob_moe.distributions import SelectedMixture
from prob_moe.estimators.sites import Program, Site, assignment_sites, is_assignment, no_guide, ordinary_sites


class TraceMixture_ELBO(Trace_ELBO):
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

    **Assumption.** Datapoints meet through the capacity only.

    At m = 1 < k the router's gradient would know nothing of y: :meth:`loss` gives the value, gradients are refused.

    :param kwargs: ``num_particles``, ``vectorize_particles``, ``max_plate_nesting``, ``retain_graph`` as in Pyro.
    :raises ValueError: if the model has no such site, or several, or the guide draws it.
    """

    def loss_and_grads(self, model: Program, guide: Program | None, *args: Any, **kwargs: Any) -> float:
        """:returns: the loss, after backward."""
        with _Gradients(self):
            return float(super().loss_and_grads(model, guide, *args, **kwargs))

    def differentiable_loss(self, model: Program, guide: Program | None, *args: Any, **kwargs: Any) -> Tensor:
        """:returns: a scalar, an estimate of -M, with the gradient that the class states."""
        with _Gradients(self):
            loss: Tensor = super().differentiable_loss(model, guide, *args, **kwargs)
            return loss

    _wants_gradients = False

    def _guess_max_plate_nesting(
        self, model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # Pyro's guess evaluates every log_prob; that of the assignment is never needed and may not exist.
        hidden = poutine.block(model, hide_fn=is_assignment)
        super()._guess_max_plate_nesting(hidden, no_guide if guide is None else guide, args, kwargs)

    def _get_vectorized_trace(
        self, model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        traces: tuple[Trace, Trace] = super()._get_vectorized_trace(
            model, no_guide if guide is None else guide, args, kwargs
        )
        return traces

    def _get_trace(
        self, model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        guide = no_guide if guide is None else guide
        guide_trace = prune_subsample_sites(poutine.trace(guide).get_trace(*args, **kwargs))
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = prune_subsample_sites(poutine.trace(replayed).get_trace(*args, **kwargs))
        name, site = _set_valued_site(model_trace, guide_trace)
        if self._wants_gradients:
            _refuse_one_of_many(name, site)
        model_trace.remove_node(name)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        if is_validation_enabled():
            for trace in (model_trace, guide_trace):
                for other in ordinary_sites(trace).values():
                    check_site_shape(other, self.max_plate_nesting)
        return model_trace, guide_trace


class _Gradients:
    """While gradients are wanted, and not the value alone."""

    def __init__(self, elbo: TraceMixture_ELBO) -> None:
        self.elbo = elbo

    def __enter__(self) -> None:
        self.elbo._wants_gradients = torch.is_grad_enabled()

    def __exit__(self, *_: object) -> None:
        self.elbo._wants_gradients = False


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
