"""The balanced objective as a Pyro ELBO: the procedure is the model, and runs once."""

from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import MultiFrameTensor
from pyro.poutine import Trace
from torch import Tensor

from prob_moe.estimators.functional import balanced_surrogate
from prob_moe.estimators.particles import OfParticle
from prob_moe.estimators.set_site import check_no_mixture
from prob_moe.estimators.sites import Site, assignment_sites, present
from prob_moe.estimators.surrogate_elbo import SurrogateELBO, add_sites


@dataclass
class Scored(OfParticle):
    """A site with a score function; tensors have one element for each that the site's plates hold."""

    common = frozenset({"baseline"})

    #: whose gradient is the score, or has it as its expectation given the value; (*batch)
    score: Tensor
    #: what it meets, without gradient; (*batch)
    cost: Tensor
    #: which datapoints are no padding; (*batch, n)
    present: Tensor
    #: the baseline that the site asks for
    baseline: Any


class TraceBalanced_ELBO(SurrogateELBO):
    r"""
    Unbiased gradients of the *balanced objective*

    .. math:: B(\theta) = E_{Z \sim \mathrm{procedure}}[\textstyle\sum_i f_i(Z)],

    in which the procedure is part of the model: it is what one wants where what runs is what is meant, and stays
    unbiased for every likelihood, also where datapoints interact (attention, batch normalisation). Assignments are
    drawn by the model from their own procedures. Their log-probabilities stand in model and guide alike and cancel, so
    what remains of a site is its score function, times the cost minus a baseline:

    .. math:: \sum f + \mathrm{sg}(\textstyle\sum f - b) \log P(Z),

    with :meth:`~prob_moe.distributions.AssignmentDistribution.score_function` for :math:`\log P`: for draws of
    :class:`~prob_moe.distributions.GumbelMatching` the joint density of assignment and prices, in closed form. The
    model runs once per particle.

    **Model.** Any number of assignment sites (layers), also of several experts per datapoint, whose score is that of
    their sets. The cost is summed to the plates of a site, so that each batch element's score meets its own cost only.
    All other sites are treated as in :class:`~pyro.infer.Trace_ELBO`; those
    that are latent need a guide. ``poutine.scale``, ``poutine.mask`` and subsampled plates scale costs, never a score.
    A guide may draw an assignment too, from another distribution: then the joint ``log_prob`` is evaluated on both
    sides, as Pyro does.

    **Baselines** are read from ``infer={"baseline": ...}`` of a site, as in
    :class:`~prob_moe.estimators.TraceRouting_ELBO`; here the cost is one number per batch element.

    **Pyro's own ELBOs** have the same gradient in expectation, at the price of two runs and of the joint ``log_prob``
    on both sides: the guide draws the assignments by running the model.

    >>> import pyro
    >>> from prob_moe.distributions import CapacitySkip
    >>> def model(logits, y):
    ...     z = pyro.sample("z", CapacitySkip(logits, capacity=2))
    ...     with pyro.plate("data", len(y)), pyro.poutine.mask(mask=z >= 0):
    ...         pyro.sample("y", pyro.distributions.Normal(z.double(), 1.0), obs=y)
    >>> logits, y = torch.zeros(4, 2, requires_grad=True), torch.ones(4)
    >>> loss = TraceBalanced_ELBO().loss_and_grads(model, None, logits, y)
    >>> guide = pyro.poutine.block(model, expose=["z"])
    >>> loss = pyro.infer.Trace_ELBO().loss_and_grads(model, guide, logits, y)

    :param kwargs: ``num_particles``, ``vectorize_particles``, ``max_plate_nesting``, ``retain_graph`` as in Pyro.
    :raises NotImplementedError: if a procedure has no score function.
    :raises ValueError: if a baseline does not fit, or a site has a :class:`~prob_moe.distributions.SelectedMixture`.
    """

    def _left_out(self, model_trace: Trace, guide_trace: Trace) -> list[str]:
        check_no_mixture(model_trace)
        return list(_own_assignments(model_trace, guide_trace))

    def _elbo(self, model_trace: Trace, guide_trace: Trace) -> Any:
        return self._terms(model_trace, guide_trace)[0]

    def _particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any, dict[str, Scored]]:
        elbo, surrogate, log_r = self._terms(model_trace, guide_trace)
        return elbo, surrogate, _scored_sites(model_trace, guide_trace, log_r)

    def _with_baselines(self, particles: dict[str, Scored]) -> Any:
        surrogate: Any = 0.0
        for name, site in particles.items():
            weight = torch.ones_like(site.cost)
            baseline, loss = self.baselines(name, site.baseline, site.cost, weight, site.present)
            surrogate = surrogate + balanced_surrogate(site.cost, site.score, baseline).sum() - loss
        return surrogate

    def _terms(self, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any, MultiFrameTensor]:
        """Value, surrogate without score functions, and what these meet."""
        log_r = MultiFrameTensor()
        own = _own_assignments(model_trace, guide_trace)
        model_sites = [site for name, site in _sites(model_trace).items() if name not in own]
        elbo, surrogate = add_sites(log_r, model_sites, _sites(guide_trace).values())
        return elbo, surrogate, log_r


def _sites(trace: Trace) -> dict[str, Site]:
    return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}


def _own_assignments(model_trace: Trace, guide_trace: Trace) -> dict[str, Site]:
    """The assignments that the model drew from their own procedures."""
    return {name: site for name, site in assignment_sites(model_trace).items() if name not in guide_trace.nodes}


def _scored_sites(model_trace: Trace, guide_trace: Trace, log_r: MultiFrameTensor) -> dict[str, Scored]:
    scored = {}
    for name, site in _own_assignments(model_trace, guide_trace).items():
        if site["fn"].logits.requires_grad:
            score = site["fn"].score_function(site["value"])
            scored[name] = _scored(site, score, present(site), log_r)
    for name, site in _sites(guide_trace).items():
        score = site["score_parts"].score_function
        if not is_identically_zero(score):
            # What is no assignment is one datapoint.
            everybody = score.new_ones((*score.shape, 1), dtype=torch.bool)
            scored[name] = _scored(site, score, everybody, log_r)
    return scored


def _scored(site: Site, score: Tensor, present: Tensor, log_r: MultiFrameTensor) -> Scored:
    # Plates of size 1 are missing on the left of a sum.
    cost = torch.as_tensor(log_r.sum_to(site["cond_indep_stack"])).to(score).expand(score.shape)
    present = present.expand((*score.shape, present.shape[-1]))
    # Baselines know batch elements, not where plates stand that are not the site's, such as that of the datapoints.
    plates = {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized}
    batch = [size for dim, size in zip(range(-score.dim(), 0), score.shape) if size != 1 or dim in plates]
    return Scored(
        score=score.reshape(batch),
        cost=cost.reshape(batch),
        present=present.reshape([*batch, present.shape[-1]]),
        baseline=site["infer"].get("baseline"),
    )
