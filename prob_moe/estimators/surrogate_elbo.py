"""What the ELBOs of both objectives share: entrances, traces, and the sites that are no assignments."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero
from pyro.infer import Trace_ELBO
from pyro.infer.util import MultiFrameTensor, is_validation_enabled, torch_item
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape, warn_if_nan
from torch import Tensor

from prob_moe.estimators.particles import stack_particles
from prob_moe.estimators.reruns import Rerun
from prob_moe.estimators.site_baselines import SiteBaselines
from prob_moe.estimators.sites import Program, Site, is_assignment, no_guide, ordinary_sites


class SurrogateELBO(Trace_ELBO):
    """
    An ELBO whose value and whose surrogate, a scalar with the gradient, are made by a subclass from traces. In these
    the joint log-probability of an assignment site has not been evaluated, unless :meth:`_left_out` keeps it.

    :param kwargs: as of :class:`~pyro.infer.Trace_ELBO`.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.baselines = SiteBaselines()

    @abstractmethod
    def _elbo(self, model_trace: Trace, guide_trace: Trace) -> Any:
        """:returns: the value of a trace, over all particles in it."""

    @abstractmethod
    def _particle(self, model_trace: Trace, guide_trace: Trace) -> tuple[Any, Any, Any]:
        """
        :returns: value; surrogate of all that meets no baseline; and what does, as
            :func:`~prob_moe.estimators.particles.stack_particles` takes it, or None.
        """

    @abstractmethod
    def _with_baselines(self, particles: Any) -> Any:
        """
        :param particles: what meets baselines, of all particles at once, for some baselines compare them.
        :returns: its surrogate.
        """

    def _left_out(self, model_trace: Trace, guide_trace: Trace) -> list[str]:
        """:returns: the sites whose joint log-probability is not evaluated: all assignments that are drawn."""
        return [name for name, site in model_trace.nodes.items() if is_assignment(site)]

    def _check(self, model: Program, rerun: Rerun, model_trace: Trace, guide_trace: Trace) -> None:
        """What is checked under validation, in every trace."""

    # Entrances -------------------------------------------------------------------------------------------------------

    def loss(self, model: Program, guide: Program | None, *args: Any, **kwargs: Any) -> float:
        """:returns: an estimate of minus the objective, without side effects on the baselines."""
        elbo = 0.0
        with torch.no_grad():
            for traces in self._get_traces(model, guide, args, kwargs):
                elbo += torch_item(self._elbo(*traces)) / self.num_particles
        warn_if_nan(-elbo, "loss")
        return -elbo

    def differentiable_loss(self, model: Program, guide: Program | None, *args: Any, **kwargs: Any) -> Tensor:
        """:returns: a scalar with the value of the loss and the gradient of the surrogate."""
        elbo, surrogate = self._mean_elbo_and_surrogate(model, guide, args, kwargs)
        warn_if_nan(surrogate, "loss")
        return -elbo - (surrogate - surrogate.detach())

    def loss_and_grads(self, model: Program, guide: Program | None, *args: Any, **kwargs: Any) -> float:
        """:returns: the loss, after backward on the surrogate."""
        elbo, surrogate = self._mean_elbo_and_surrogate(model, guide, args, kwargs)
        if surrogate.requires_grad:
            (-surrogate).backward(retain_graph=self.retain_graph)
        loss = -torch_item(elbo)
        warn_if_nan(loss, "loss")
        return loss

    def _mean_elbo_and_surrogate(
        self, model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        elbo, surrogate, particles = zip(
            *[self._particle(*traces) for traces in self._get_traces(model, guide, args, kwargs)], strict=True
        )
        total = sum(surrogate)
        if particles[0] is not None:
            together = particles[0] if self._particles_in_plate else stack_particles(list(particles))
            total = total + self._with_baselines(together)
        return torch.as_tensor(sum(elbo)) / self.num_particles, torch.as_tensor(total) / self.num_particles

    # Traces ----------------------------------------------------------------------------------------------------------

    @property
    def _particles_in_plate(self) -> bool:
        """Whether one trace holds all particles, as the outermost dimension."""
        return self.vectorize_particles and self.num_particles > 1

    def _guess_max_plate_nesting(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        # Pyro's guess evaluates every log_prob; those of assignments are not needed and may not exist.
        super()._guess_max_plate_nesting(_without_assignments(model), _without_assignments(guide), args, kwargs)

    def _get_traces(
        self, model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[Trace, Trace]]:
        return super()._get_traces(model, no_guide if guide is None else guide, args, kwargs)

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        whole_guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        guide_trace = prune_subsample_sites(whole_guide_trace)
        whole_model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        model_trace = prune_subsample_sites(whole_model_trace)
        model_rest, guide_rest = model_trace.copy(), guide_trace.copy()
        left_out = self._left_out(model_trace, guide_trace)
        for trace in (model_rest, guide_rest):
            for name in left_out:
                if name in trace.nodes:
                    trace.remove_node(name)
        if is_validation_enabled():
            check_model_guide_match(model_rest, guide_rest, self.max_plate_nesting)
        model_rest.compute_log_prob()
        guide_rest.compute_score_parts()
        if is_validation_enabled():
            for trace in (model_rest, guide_rest):
                for site in ordinary_sites(trace).values():
                    check_site_shape(site, self.max_plate_nesting)
            rerun = Rerun(model, guide, args, kwargs, whole_model_trace, whole_guide_trace)
            self._check(model, rerun, model_trace, guide_trace)
        return model_trace, guide_trace


def add_sites(log_r: MultiFrameTensor, model_sites: Iterable[Site], guide_sites: Iterable[Site]) -> tuple[Any, Any]:
    """
    The terms of sites without a score function, as in :class:`~pyro.infer.Trace_ELBO`.

    :param log_r: what every score function meets, to which log p - log q of the sites is added.
    :returns: their part of value and surrogate.
    """
    elbo: Any = 0.0
    surrogate: Any = 0.0
    for site in model_sites:
        elbo = elbo + site["log_prob_sum"].detach()
        surrogate = surrogate + site["log_prob_sum"]
        log_r.add((site["cond_indep_stack"], site["log_prob"].detach()))
    for site in guide_sites:
        elbo = elbo - site["log_prob_sum"].detach()
        entropy_term = site["score_parts"].entropy_term
        if not is_identically_zero(entropy_term):
            surrogate = surrogate - entropy_term.sum()
        log_r.add((site["cond_indep_stack"], -site["log_prob"].detach()))
    return elbo, surrogate


def add_scores(log_r: MultiFrameTensor, guide_sites: Iterable[Site]) -> Any:
    """:returns: the part of the surrogate that the guide's score functions make, as in Pyro's Trace_ELBO."""
    surrogate: Any = 0.0
    for site in guide_sites:
        score = site["score_parts"].score_function
        if not is_identically_zero(score):
            surrogate = surrogate + (log_r.sum_to(site["cond_indep_stack"]) * score).sum()
    return surrogate


def _without_assignments(fn: Program) -> Program:
    return poutine.block(fn, hide_fn=is_assignment)
