"""The score function of Pyro's Trace_ELBO with a baseline from the other particles."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.trace_elbo import _compute_log_r
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import warn_if_nan
from torch import Tensor

from prob_moe.estimators.balanced import OwnProcedures, ScoreOnly
from prob_moe.estimators.sites import Program, Site, no_guide


class LeaveOneOut_ELBO(Trace_ELBO):
    r"""
    Pyro's :class:`~pyro.infer.Trace_ELBO`, in which the score function at every guide site meets the cost minus its
    mean over the other particles. With :math:`r^{(m)} = \log p - \log q` of particle m, summed to the plates of the
    site, and M particles, the surrogate is

    .. math:: \frac{1}{M} \sum_m r^{(m)}
              + \mathrm{sg}\Big(r^{(m)} - \frac{1}{M-1} \sum_{m' \ne m} r^{(m')}\Big) \log q(z^{(m)}).

    Particles are independent, so the baseline is independent of what it is multiplied with and the gradient stays
    unbiased. Including the own particle in the mean would scale the score term by (M - 1) / M.

    Made for the balanced objective, whose cost is one number for each batch element of an assignment site: put batch
    elements into a plate, and each element's score meets its own cost only, minus that of its other draws. The guide
    of :func:`~prob_moe.estimators.balanced_objective` draws by running the model; here the model then runs once a
    particle for both, instead of twice.

    As in all of Pyro's ELBOs, a site is scaled as the plates scale in which it stands. An assignment that a guide draws
    stands outside of its data plate: where that is subsampled, put the site under ``poutine.scale`` yourself. (Draws of
    the model's own procedure need nothing: their log-probabilities cancel.)

    Source: Mnih & Rezende (2016), "Variational inference for Monte Carlo objectives", eq. 7; Kool, van Hoof & Welling
    (2019), "Buy 4 REINFORCE samples, get a baseline for free!".

    :param num_particles: M >= 2.
    :param kwargs: as of :class:`~pyro.infer.Trace_ELBO`. With ``vectorize_particles`` one run of the model holds all
        particles, in a plate.
    :raises ValueError: on fewer than two particles.

    >>> import pyro
    >>> from prob_moe.distributions import CapacitySkip
    >>> from prob_moe.estimators import balanced_objective
    >>> def model(logits):
    ...     z = pyro.sample("z", CapacitySkip(logits, capacity=2))
    ...     pyro.factor("f", (z >= 0).double().sum())
    >>> logits = torch.zeros(4, 2, requires_grad=True)
    >>> elbo = LeaveOneOut_ELBO(num_particles=2)
    >>> elbo.differentiable_loss(*balanced_objective(model), logits).backward()
    """

    def __init__(self, num_particles: int = 2, **kwargs: Any) -> None:
        if num_particles < 2:
            raise ValueError(f"a leave-one-out baseline compares particles: num_particles={num_particles} must be >= 2")
        super().__init__(num_particles=num_particles, **kwargs)

    def differentiable_loss(self, model: Program, guide: Program | None, *args: Any, **kwargs: Any) -> Tensor:
        """:returns: a scalar with the value of the loss and the gradient of the surrogate."""
        loss, surrogate = self._loss_and_surrogate(model, guide, args, kwargs)
        return loss + (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Program, guide: Program | None, *args: Any, **kwargs: Any) -> float:
        """:returns: the loss, after backward on the surrogate."""
        loss, surrogate = self._loss_and_surrogate(model, guide, args, kwargs)
        if surrogate.requires_grad:
            surrogate.backward(retain_graph=self.retain_graph)
        return loss

    def _loss_and_surrogate(
        self, model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[float, Tensor]:
        traces = list(self._get_traces(model, guide, args, kwargs))
        loss, surrogate = 0.0, torch.zeros(())
        for model_trace, guide_trace in traces:
            particle_loss, particle_surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
            loss = loss + particle_loss / self.num_particles
            surrogate = surrogate + particle_surrogate / self.num_particles
        surrogate = surrogate + self._baseline_term(traces) / self.num_particles
        warn_if_nan(surrogate, "loss")
        return loss, surrogate

    def _baseline_term(self, traces: list[tuple[Trace, Trace]]) -> Tensor:
        """What the baselines add to Pyro's surrogate: baseline times score, summed over sites and particles."""
        term = torch.zeros(())
        costs = [_compute_log_r(*pair) for pair in traces]
        for name in _scored_sites(traces[0][1]):
            sites = [guide_trace.nodes[name] for _, guide_trace in traces]
            scores = torch.stack([site["score_parts"].score_function for site in sites])
            # Plates of size 1 are missing on the left of a sum: bring it to the shape of the score before stacking.
            sums = [torch.as_tensor(r.sum_to(site["cond_indep_stack"])) for r, site in zip(costs, sites)]
            cost = torch.stack([total.expand(scores.shape[1:]) for total in sums])
            dim = self._particle_dim(sites[0], scores.dim())
            others = (cost.sum(dim, keepdim=True) - cost) / (self.num_particles - 1)
            term = term + (others * scores).sum()
        return term

    def _particle_dim(self, site: Site, num_dims: int) -> int:
        """Where the particles are in the stacked scores: in front, or in their plate."""
        if not self.vectorize_particles:
            return 0
        dims = [frame.dim for frame in site["cond_indep_stack"] if frame.name == "num_particles_vectorized"]
        return num_dims + dims[0]

    def _get_traces(
        self, model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[Trace, Trace]]:
        return super()._get_traces(model, no_guide if guide is None else guide, args, kwargs)

    def _get_vectorized_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        in_plate = self._vectorized_num_particles
        return self._get_trace(in_plate(model), guide if _draws_itself(guide) else in_plate(guide), args, kwargs)

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        if not _draws_itself(guide):
            return super()._get_trace(model, guide, args, kwargs)
        model_trace = prune_subsample_sites(poutine.trace(model).get_trace(*args, **kwargs))
        guide_trace = model_trace.copy()
        for name, site in model_trace.nodes.items():
            if site["type"] == "sample" and not isinstance(site["fn"], ScoreOnly):
                guide_trace.remove_node(name)
        model_trace.compute_log_prob()
        guide_trace.compute_score_parts()
        return model_trace, guide_trace


def _draws_itself(guide: Program) -> bool:
    return isinstance(guide, OwnProcedures)


def _scored_sites(trace: Trace) -> list[str]:
    sites = {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}
    return [name for name, s in sites.items() if not is_identically_zero(s["score_parts"].score_function)]
