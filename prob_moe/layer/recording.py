"""What the expert layers of a network drew, outside of Pyro: records of it, and the losses made of it."""

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution
from prob_moe.estimators.baselines import Baseline
from prob_moe.estimators.functional import balanced_surrogate, router_surrogate

#: the entry of a recorded value where there is nothing to replay: padding
MISSING = torch.iinfo(torch.long).min


@dataclass(frozen=True, eq=False)
class RecordedLayer:
    """
    What a record holds of one call of one layer.

    :param value: the assignment, long (*batch, n), :data:`MISSING` in padding; (*batch, m, n) of a rule that gives a
        datapoint to m experts; None of a rule that chooses no experts.
    :param log_proposal: float64 (*batch, n), nats, see :class:`~prob_moe.distributions.draw.Draw`; None where the
        assignment was not drawn from a law: of a rule, or while serving.
    :param num_experts: k.
    """

    value: Tensor | None
    log_proposal: Tensor | None
    num_experts: int


def without_padding(value: Tensor, mask: Tensor | None) -> Tensor:
    """:returns: an assignment as records hold it: without gradient, and :data:`MISSING` where the mask is False."""
    value = value.detach().clone()
    return value if mask is None else value.masked_fill(~mask, MISSING)


@dataclass(frozen=True, eq=False)
class RoutingRecord:
    """
    The experts that a network used, by the names of its layers, for
    :func:`~prob_moe.layer.replay_routing`. Tensors without gradient.
    """

    layers: dict[str, RecordedLayer]

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """:returns: tensors and numbers only, for ``torch.save``."""
        return {name: dict(vars(layer)) for name, layer in self.layers.items()}

    @classmethod
    def from_state_dict(cls, state: dict[str, dict[str, Any]]) -> "RoutingRecord":
        return cls({name: RecordedLayer(**layer) for name, layer in state.items()})


@dataclass(frozen=True, eq=False)
class Visit:
    """
    One call of one layer.

    :param name: of the layer, unique in the recording.
    :param recorded: what a record keeps of it.
    :param loss: auxiliary loss, (*batch), to be added to the mean loss per datapoint.
    :param drawn: the law of the assignment, with gradient, and its value, which carries its draw; None where the
        assignment was not drawn from a law.
    :param baseline: of the layer and this call; None for none.
    :param steps: where to put what the baseline learns from when the layer is updated.
    :param with_gradient: whether gradients were recorded.
    """

    name: str
    recorded: RecordedLayer
    loss: Tensor
    drawn: tuple[AssignmentDistribution, Tensor] | None = None
    baseline: Any = None
    steps: deque[tuple[Baseline, tuple[Tensor, Tensor, Tensor]]] | None = None
    with_gradient: bool = True


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
          returns (*batch), see :func:`~prob_moe.estimators.balanced_surrogate`.

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
            return _router(loss, self.visits)
        if objective == "balanced":
            return _balanced(loss, self.visits)
        if objective == "mixture":
            raise NotImplementedError('objective="mixture" is TraceMixture_ELBO\'s, and not offered outside of Pyro')
        raise ValueError(f'objective must be "router", "balanced" or "mixture", got {objective!r}')

    def log_ratio(self) -> Tensor:
        """
        The log importance weight of the experts used, replayed or drawn: the sum over layers of the present router's
        log-probability minus the recorded log-probability with which they were proposed.

        :returns: nats, (*batch, n), float64, with gradient; minus infinity where a layer dropped the datapoint, 0 for
            padding.
        :raises ValueError: where a layer's experts were not drawn from a law, or layers differ in their datapoints.
        """
        self._check_any()
        total: Tensor | None = None
        for visit in self.visits:
            proposal = visit.recorded.log_proposal
            if visit.drawn is None or proposal is None:
                raise ValueError(
                    f"layer {visit.name!r} uses experts that no law drew (a rule, or a layer in eval mode), so that "
                    "they have no log-probability; log_ratio needs assignment distributions throughout"
                )
            law, value = visit.drawn
            term = law.router_log_prob(value).double() - proposal.to(value.device)
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


def _router(loss: Tensor, visits: list[Visit]) -> Tensor:
    weight, scores, learning = torch.ones_like(loss), [], loss.new_zeros(())
    for visit, law, value in _laws(visits):
        _check_shape(loss, value.shape, visit.name, "datapoint, (*batch, n)")
        weight = weight * law.importance_weights(value).to(loss.dtype)
    cost = torch.where(weight > 0, loss, torch.zeros_like(loss)).detach()
    for visit, law, value in _laws(visits):
        baseline, baseline_loss = _baseline(visit, cost, weight, law)
        scores.append((law.router_log_prob(value), baseline))
        learning = learning + baseline_loss
    return _learning_along(router_surrogate(loss, weight, scores), learning)


def _balanced(loss: Tensor, visits: list[Visit]) -> Tensor:
    surrogate, learning, cost = loss, loss.new_zeros(()), loss.detach()
    for visit, law, value in _laws(visits):
        _check_shape(loss, law.batch_shape, visit.name, "batch element, (*batch)")
        baseline, baseline_loss = _baseline(visit, cost, torch.ones_like(cost), law)
        surrogate = surrogate + balanced_surrogate(cost, law.score_function(value), baseline) - cost
        learning = learning + baseline_loss
    return _learning_along(surrogate, learning)


def _baseline(visit: Visit, cost: Tensor, weight: Tensor, law: AssignmentDistribution) -> tuple[Tensor, Tensor]:
    """:returns: the baseline without gradient, and the loss that trains it, a scalar."""
    baseline = visit.baseline
    if baseline is None:
        return cost.new_zeros(()), cost.new_zeros(())
    where = f"layer {visit.name!r}"
    if not isinstance(baseline, Baseline):
        raise ValueError(f"{where}: a dict of options is Pyro's; outside give a Baseline, such as DecayingAverage()")
    if baseline.needs_particles:
        raise ValueError(f"{where}: a {type(baseline).__name__} baseline compares particles, and here is one")
    shape = law.batch_shape + law.event_shape
    present = torch.ones(shape, dtype=torch.bool, device=cost.device) if law.mask is None else law.mask
    step = (cost.unsqueeze(0), weight.unsqueeze(0), present.unsqueeze(0))
    try:
        value, loss = baseline.value(*step)
        value = value.detach().expand(step[0].shape).squeeze(0)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if visit.steps is not None and type(baseline).update is not Baseline.update:
        visit.steps.append((baseline, step))
        if len(visit.steps) == visit.steps.maxlen:
            warnings.warn(
                f"{where}: its baseline has {len(visit.steps)} steps to learn from and was never updated; call "
                "layer.update() once per optimiser step",
                stacklevel=4,
            )
    return value, loss


def _learning_along(surrogate: Tensor, learning: Tensor) -> Tensor:
    """The loss of the baselines adds a gradient, in equal parts to all entries, and no value."""
    share = learning / max(1, surrogate.numel())
    return surrogate + (share - share.detach())


def _laws(visits: list[Visit]) -> Iterator[tuple[Visit, AssignmentDistribution, Tensor]]:
    for visit in visits:
        if visit.drawn is not None:
            yield (visit, *visit.drawn)


def _check_shape(loss: Tensor, shape: torch.Size, name: str, what: str) -> None:
    if loss.shape != shape:
        raise ValueError(
            f"loss must have one entry for each {what} = {tuple(shape)} as layer {name!r} has them, got "
            f"{tuple(loss.shape)}"
        )


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
