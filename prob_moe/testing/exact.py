"""Exact objectives of small models, by conditioning their assignment sites on every value."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution
from prob_moe.estimators.sites import Program, Site, assignment_sites, data_plate, ordinary_sites, per_datapoint
from prob_moe.mixture import MixtureOfExperts


def exact_router_objective(model: Program, *args: Any, **kwargs: Any) -> Tensor:
    r"""
    The router objective :math:`R = \sum_i E_{z_i \sim p_i}[f_i(z_i)]` without sampling.

    The model runs once with all datapoints at expert j, for every j (and, with several assignment sites, for every
    combination): right where datapoints interact through capacity only. Such a run exceeds capacity, so the model must
    not depend on it; a :class:`~prob_moe.mixture.MixtureOfExperts` does, and its own ``router_objective`` is used.

    :param model: its latent sites are assignments, drawn by the model, not by a guide.
    :returns: nats, a scalar, differentiable in the parameters.
    :raises ValueError: if the model has another latent site, or no assignment site.
    """
    if isinstance(model, MixtureOfExperts):
        return _of_mixture(model, *args, **kwargs)
    total: Any = 0.0
    for index, (trace, values) in enumerate(_constant_assignments(model, args, kwargs, {})):
        frame = data_plate(trace, *_first(trace, values))
        weight: Any = 1.0
        for name, value in values.items():
            log_p = trace.nodes[name]["fn"].router_log_prob(value)
            weight = weight * per_datapoint(log_p, frame.dim).exp()
        for name, site in ordinary_sites(trace).items():
            if name in values:
                continue
            if frame in site["cond_indep_stack"]:
                # Plates inside the data plate are summed out by the broadcast.
                total = total + (weight * site["log_prob"]).sum()
            elif index == 0:
                total = total + site["log_prob_sum"]
    return total


def exact_balanced_objective(model: Program, *args: Any, **kwargs: Any) -> Tensor:
    r"""
    The balanced objective :math:`B = E_{Z \sim \mathrm{procedure}}[\sum_i f_i(z_i)]` by enumeration: the model runs
    once for every value of ``enumerate_support`` (with several assignment sites, for every combination), weighted by
    ``log_prob``.

    :param model: its latent sites are assignments of batch size 1 whose procedures can enumerate and evaluate.
    :returns: nats, a scalar, differentiable in the parameters.
    :raises ValueError: if the model has another latent site, no assignment site, or a batch of assignments.
    """
    return _expectation(model, args, kwargs, {})


def exact_mixture_objective(model: Program, *args: Any, **kwargs: Any) -> Tensor:
    r"""
    The mixture bound M of a model whose assignment selects several experts per datapoint, by enumeration, with the
    gradient that :class:`~prob_moe.estimators.TraceMixture_ELBO` estimates: the procedure is held fixed.

    :param model: its one latent site has ``num_selected``, batch size 1, and a procedure that can enumerate and
        evaluate; the selected experts meet in a :class:`~prob_moe.distributions.SelectedMixture`.
    :returns: nats, a scalar, differentiable in the parameters.
    :raises ValueError: if the model has another latent site, no assignment site, or a batch of assignments.
    """
    return _expectation(model, args, kwargs, {}, fixed=True)


def _of_mixture(model: MixtureOfExperts, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    objective = model.router_objective(x, y, mask).sum()
    if not model.load_balancing:
        return objective
    return objective - model.load_balancing_penalty(model.routing(x, mask)).sum()


def _expectation(
    model: Program, args: tuple[Any, ...], kwargs: dict[str, Any], values: dict[str, Tensor], *, fixed: bool = False
) -> Tensor:
    """The mean log-probability over all assignments; with ``fixed``, how likely they are has no gradient."""
    trace = _run(model, args, kwargs, values)
    following = next(iter(assignment_sites(trace).items()), None)
    if following is None:
        terms = [site["log_prob_sum"] for name, site in ordinary_sites(trace).items() if name not in values]
        return torch.stack(terms).sum()
    name, site = following
    routing = site["fn"]
    if routing.batch_shape.numel() != 1:
        raise ValueError(
            f"site {name!r} has a batch of assignments, batch_shape {tuple(routing.batch_shape)}, whose combinations "
            "are not enumerated; run the model on one batch element"
        )
    total: Any = 0.0
    for value in routing.enumerate_support():
        probability = routing.log_prob(value).exp().sum()
        probability = probability.detach() if fixed else probability
        if probability > 0:
            total = total + probability * _expectation(model, args, kwargs, values | {name: value}, fixed=fixed)
    return total


def _constant_assignments(
    model: Program, args: tuple[Any, ...], kwargs: dict[str, Any], values: dict[str, Tensor]
) -> Iterator[tuple[Trace, dict[str, Tensor]]]:
    """Traces with every assignment site at one expert throughout, for all combinations of experts."""
    trace = _run(model, args, kwargs, values)
    following = next(iter(assignment_sites(trace).items()), None)
    if following is None:
        yield trace, values
        return
    name, site = following
    _check_single(name, site)
    for expert in range(site["fn"].num_experts):
        value = torch.full_like(site["value"], expert)
        yield from _constant_assignments(model, args, kwargs, values | {name: value})


def _check_single(name: str, site: Site) -> None:
    """
    :raises ValueError: if an assignment site selects several experts per datapoint.
    """
    if len(site["fn"].event_shape) > 1:
        raise ValueError(
            f"assignment site {name!r} selects num_selected={site['fn'].event_shape[0]} experts per datapoint, where "
            "one is wanted (num_selected=None); TraceMixture_ELBO trains several"
        )


def _run(model: Program, args: tuple[Any, ...], kwargs: dict[str, Any], values: dict[str, Tensor]) -> Trace:
    """
    :raises ValueError: on latent sites other than assignments, or no assignments at all.
    """
    with poutine.block():
        recorded = poutine.trace(poutine.condition(model, data=values)).get_trace(*args, **kwargs)
        trace = prune_subsample_sites(recorded)
    latent = [name for name, site in ordinary_sites(trace).items() if not site["is_observed"]]
    if latent:
        raise ValueError(f"sites {latent} are latent but no assignments; observe them to have an exact objective")
    if not values and not assignment_sites(trace):
        raise ValueError("the model has no latent assignment site")
    # The assignments' own log_prob is no part of either objective, and need not exist.
    open_sites = set(assignment_sites(trace)) | set(values)
    trace.compute_log_prob(site_filter=lambda name, site: name not in open_sites)
    return trace


def _first(trace: Trace, values: dict[str, Tensor]) -> tuple[str, Any]:
    name = next(iter(values))
    return name, trace.nodes[name]


def exact_mixture_bound(routing: AssignmentDistribution, log_likelihoods: Tensor) -> Tensor:
    r"""
    The mixture bound of a procedure by enumeration of its assignments,

    .. math:: M = \sum_Z P(Z) \sum_{i\ \text{kept}} \frac{1}{\kappa_i}
              \log\Big(\kappa_i \sum_{j \in S_i} \frac{p_{ij}}{\pi_{ij}}\, e^{f_{ij}}\Big),

    differentiable with the procedure (P, :math:`\pi` and :math:`\kappa`) held fixed, as
    :class:`~prob_moe.estimators.TraceMixture_ELBO` estimates it.

    :param routing: of batch shape (), with ``num_selected``; one that can enumerate.
    :param log_likelihoods: f, nats (n, k).
    :returns: nats, a scalar.
    """
    values = routing.enumerate_support()
    probability = routing.log_prob(values).exp().detach()
    log_p = routing.router_log_prob(values)
    log_weights, kappa = routing.log_importance_weights(values), routing.keep_probability(values)
    processed = values >= 0
    kept = processed.any(-2)
    choices = torch.where(processed, values, ~values)
    f = log_likelihoods.expand(len(values), *log_likelihoods.shape).gather(-1, choices.mT).mT
    terms = log_weights.to(f.dtype) + (log_p - log_p.detach()) + f
    # A logsumexp of nothing has no gradient.
    terms = torch.where(processed, terms, torch.where(kept, -torch.inf, 0.0).unsqueeze(-2))
    bound = torch.where(kept, (kappa.log() + terms.logsumexp(-2)) / kappa, 0.0)
    return (probability * bound.sum(-1)).sum()
