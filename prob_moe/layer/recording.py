"""What the expert layers of a network drew, outside of Pyro: records of it, and the losses made of it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from prob_moe.distributions import IndependentRouting
from prob_moe.layer.records import RoutingRecord, Visit
from prob_moe.layer.surrogates import balanced, mixture, router


@dataclass
class Routed:
    """What :func:`record_routing` collects."""

    visits: list[Visit] = field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """The names of the layers so far."""
        return {visit.name for visit in self.visits}

    @property
    def loss(self) -> Tensor:
        """
        The layers' auxiliary losses, summed, (*batch): load balancing and the losses of rules, in units of the loss
        per datapoint. Add their mean over batches to the mean loss per present datapoint.
        """
        self._check_any()
        return torch.stack([visit.loss for visit in self.visits]).sum(0)

    def surrogate(self, loss: Tensor, *, objective: Literal["router", "balanced", "mixture"] = "router") -> Tensor:
        r"""
        A loss whose value estimates the objective, and whose gradient does so for all parameters, without bias.

        * ``"router"``: the loss of every datapoint, :math:`\sum_i E_{z_i \sim p_i}[\ell_i]`, where datapoints interact
          through capacity only. Takes losses (*batch, n), returns (*batch, n), see
          :func:`~prob_moe.estimators.router_surrogate`: the weights of all layers multiply, and a dropped datapoint
          counts 0. Sum, and divide by the number of datapoints present, not of those kept.
        * ``"balanced"``: the loss under the procedure, :math:`E_{Z \sim \mathrm{procedure}}[L]`, also where datapoints
          interact (attention). Takes one loss for each batch element, (*batch), of all that its routing can change, and
          returns (*batch), see :func:`~prob_moe.estimators.balanced_surrogate`. With ``num_selected`` the score is that
          of the sets; :class:`~prob_moe.distributions.DependentRounding` has none.
        * ``"mixture"``: minus the mixture bound, :math:`-M`, see :class:`~prob_moe.estimators.TraceMixture_ELBO`. Takes
          the negative log-likelihoods (*batch, m, n) of the experts that the last layer selected (``num_selected`` = m
          >= 2, ``combine=None``), and returns (*batch, n). Earlier layers have one expert per datapoint and enter as in
          the router objective, with minus the bound as the loss of a datapoint.

        Layers whose experts a rule chose pass the loss on as it is. Baselines that are networks
        learn along.

        :raises ValueError: on a loss of another shape, no layers, or draws made without gradients.
        """
        self._check_any()
        if torch.is_grad_enabled() and any(v.drawn is not None and not v.with_gradient for v in self.visits):
            raise ValueError(
                "the layers were run under torch.no_grad(), as reentrant checkpointing does too, so their routers "
                "would get no gradient; use checkpoint(..., use_reentrant=False)"
            )
        if objective == "router":
            return router(loss, self.visits)
        if objective == "balanced":
            return balanced(loss, self.visits)
        if objective == "mixture":
            return mixture(loss, self.visits)
        raise ValueError(f'objective must be "router", "balanced" or "mixture", got {objective!r}')

    def log_ratio(self) -> Tensor:
        """
        The log importance weight of the experts used, replayed or drawn: the sum over layers of the present router's
        log-probability minus the recorded log-probability with which they were proposed; with ``num_selected`` the
        log-probability of the set, present minus recorded.

        :returns: nats, (*batch, n), float64, with gradient; minus infinity where a layer dropped the datapoint, 0 for
            padding.
        :raises ValueError: where a layer's experts were not drawn from a law, or layers differ in their datapoints;
            with ``num_selected`` also where sets do not have a law of their own, which they have under
            :class:`~prob_moe.distributions.IndependentRouting` only.
        """
        self._check_any()
        total: Tensor | None = None
        for visit in self.visits:
            term = _log_ratio(visit)
            if total is not None and total.shape != term.shape:
                raise ValueError(f"layers differ in their datapoints: {tuple(total.shape)} and {tuple(term.shape)}")
            total = term if total is None else total + term
        assert total is not None
        return total

    def record(self) -> RoutingRecord:
        """:returns: the experts used, with the log-probabilities of their proposals, to be replayed."""
        return RoutingRecord({visit.name: visit.recorded for visit in self.visits})

    def _check_any(self) -> None:
        if not self.visits:
            raise ValueError("no expert layer was run while routing was recorded")


def _log_ratio(visit: Visit) -> Tensor:
    recorded = visit.recorded
    if visit.drawn is None or recorded.log_proposal is None:
        raise ValueError(
            f"layer {visit.name!r} uses experts that no law drew (a rule, or a layer in eval mode), so that "
            "they have no log-probability; log_ratio needs assignment distributions throughout"
        )
    law, value = visit.drawn
    if law.num_selected is None:
        return law.router_log_prob(value).double() - recorded.log_proposal.to(value.device)
    if not isinstance(law, IndependentRouting) or recorded.log_set_prob is None:
        raise ValueError(
            f"layer {visit.name!r} has num_selected={law.num_selected}, for which log_ratio needs IndependentRouting, "
            "now and in the record: elsewhere the set of a datapoint has no law of its own"
        )
    return law.choice_log_prob(value).double() - recorded.log_set_prob.to(value.device)


_recorder: ContextVar[Routed | None] = ContextVar("recorder", default=None)


@contextmanager
def record_routing() -> Iterator[Routed]:
    """
    Collect what the :class:`~prob_moe.layer.ExpertLayer` of a network draw, outside of Pyro: every call once, also
    where activation checkpointing (``use_reentrant=False``) repeats it.

    >>> import torch
    >>> from prob_moe.distributions import CapacitySkip
    >>> from prob_moe.experts import BatchedExperts
    >>> from prob_moe.layer import ExpertLayer
    >>> _ = torch.manual_seed(0)
    >>> layer = ExpertLayer(None, BatchedExperts(4, 2, None, 1), CapacitySkip, capacity_factor=1.0)
    >>> x, y = torch.randn(20, 2), torch.randn(20)
    >>> with record_routing() as routed:
    ...     losses = (layer(x).squeeze(-1) - y).square()
    >>> routed.surrogate(losses).mean().backward()
    >>> layer.router.weight.grad.shape
    torch.Size([4, 2])
    """
    routed = Routed()
    token = _recorder.set(routed)
    try:
        yield routed
    finally:
        _recorder.reset(token)


def recorder() -> Routed | None:
    """:returns: where layers put what they draw; None outside of :func:`record_routing`."""
    return _recorder.get()


def warn_where_nobody_records() -> bool:
    """:returns: whether nobody records, of which it warns: for a distribution that trains outside of Pyro."""
    if recorder() is not None:
        return False
    warnings.warn(
        "an ExpertLayer trains outside of Pyro and of record_routing(), so its router gets no gradient from "
        "the loss; write `with record_routing() as routed: ...` and use routed.surrogate(loss)",
        stacklevel=4,
    )
    return True
