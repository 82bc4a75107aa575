"""What is kept of one call of an expert layer outside of Pyro: records for replays, and visits for losses."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution, IndependentRouting
from prob_moe.distributions.draw import Draw
from prob_moe.estimators.baselines import Baseline

#: the entry of a recorded value where there is nothing to replay: padding
MISSING = torch.iinfo(torch.long).min


@dataclass(frozen=True, eq=False)
class RecordedLayer:
    """
    What a record holds of one call of one layer.

    :param value: the assignment, long (*batch, n), or (*batch, m, n) with m experts per datapoint, the least
        long number in padding; None of a rule that chooses no experts.
    :param log_proposal: float64 in the shape of the value, nats, see :class:`~prob_moe.distributions.draw.Draw`; None
        where the assignment was not drawn from a law: of a rule, or while serving.
    :param num_experts: k.
    :param keep_probability: with m experts per datapoint the probability that a datapoint keeps one at least, given
        what was chosen, (*batch, n); None otherwise.
    :param log_set_prob: with m experts per datapoint that chose independently, the log-probability of its set, float64
        (*batch, n), nats; None otherwise.
    """

    value: Tensor | None
    log_proposal: Tensor | None
    num_experts: int
    keep_probability: Tensor | None = None
    log_set_prob: Tensor | None = None


def record_of_draw(law: AssignmentDistribution, draw: Draw) -> RecordedLayer:
    """:returns: what a record holds of a draw of a law."""
    value = without_padding(draw.value, law.mask)
    if law.num_selected is None:
        return RecordedLayer(value, draw.log_proposal, law.num_experts)
    log_set_prob = None
    if isinstance(law, IndependentRouting):
        log_set_prob = law.choice_log_prob(draw.value).detach().double()
    kappa = law.keep_probability(draw.value).detach()
    return RecordedLayer(value, draw.log_proposal, law.num_experts, kappa, log_set_prob)


def without_padding(value: Tensor, mask: Tensor | None) -> Tensor:
    """
    :param value: an assignment, (*batch, n) or (*batch, m, n).
    :param mask: bool (*batch, n), or None.
    :returns: the assignment as records hold it: without gradient, and :data:`MISSING` where the mask is False.
    """
    value = value.detach().clone()
    return value if mask is None else value.masked_fill(~entry_mask(mask, value), MISSING)


def entry_mask(mask: Tensor, value: Tensor) -> Tensor:
    """:returns: which entries of an assignment are no padding, in its shape, (*batch, n) or (*batch, m, n)."""
    return (mask.unsqueeze(-2) if value.dim() > mask.dim() else mask).expand(value.shape)


def check_padding(value: Tensor, mask: Tensor | None) -> Tensor:
    """
    :param value: of a record.
    :param mask: of the layer that replays it.
    :returns: the value, coded -1 in padding.
    :raises ValueError: if record and layer differ in where padding is.
    """
    present = torch.ones_like(value, dtype=torch.bool) if mask is None else entry_mask(mask, value)
    if not torch.equal(value != MISSING, present):
        raise ValueError("the record has padding where the mask has none, or the other way round")
    return torch.where(present, value, -1)


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
    :param combined: whether the layer put out one output per datapoint, also of several experts.
    :param baseline: of the layer and this call; None for none.
    :param learn: takes what the baseline learns from when the layer is updated.
    :param with_gradient: whether gradients were recorded.
    """

    name: str
    recorded: RecordedLayer
    loss: Tensor
    drawn: tuple[AssignmentDistribution, Tensor] | None = None
    combined: bool = True
    baseline: Any = None
    learn: Callable[[Baseline, tuple[Tensor, Tensor, Tensor]], None] | None = None
    with_gradient: bool = True
