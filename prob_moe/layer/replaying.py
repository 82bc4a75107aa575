"""Expert layers that use the experts of a record instead of drawing."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from prob_moe.distributions import AssignmentDistribution
from prob_moe.distributions.draw import Draw, attach
from prob_moe.layer.names import name_in
from prob_moe.layer.records import RecordedLayer, RoutingRecord, check_padding


class Replay:
    """A record in use, with the layers that found theirs."""

    def __init__(self, record: RoutingRecord) -> None:
        self.record = record
        self.names: set[str] = set()

    def take(self, name: str) -> RecordedLayer:
        """:raises ValueError: if the record has no such layer."""
        self.names.add(name)
        if name not in self.record.layers:
            raise ValueError(
                f"the record has no layer {name!r}, only {sorted(self.record.layers)}: it is of another network"
            )
        return self.record.layers[name]

    def check_all_used(self) -> None:
        """:raises ValueError: if the record has layers that the network does not have."""
        unused = sorted(set(self.record.layers) - self.names)
        if unused:
            raise ValueError(f"the record has layers {unused} that the network did not run: it is of another network")


_replay: ContextVar[Replay | None] = ContextVar("replay", default=None)


@contextmanager
def replay_routing(record: RoutingRecord) -> Iterator[None]:
    """
    Let the expert layers of a network use the experts of a record, dropped datapoints included. Gates (of rules) and
    log-probabilities come from the present routers. Rules that choose no experts (dense mixture, SMEAR, Soft MoE) have
    none to replay, and do as they always do.

    :raises ValueError: where record and network differ: in the names of layers, in numbers of experts, in shapes, or
        in where padding is.
    :raises NotImplementedError: by a rule of one's own that does not tell what given experts contribute, see
        :meth:`~prob_moe.rules.RoutingRule.replay`.
    """
    replay = Replay(record)
    token = _replay.set(replay)
    try:
        yield
    finally:
        _replay.reset(token)
    replay.check_all_used()


def replaying() -> bool:
    """:returns: whether a record is being replayed."""
    return _replay.get() is not None


# For the passes that activation checkpointing repeats, in which no context is there any more: the number that a pass
# drew, as its repetition does, to what it replayed. The record and the graph keep it alive.
_replayed: "weakref.WeakValueDictionary[int, RecordedLayer]" = weakref.WeakValueDictionary()


def number_of_pass() -> int:
    """
    :returns: a number by which a repetition of this pass finds what the first did, for it draws the same. Moves torch's
        random state.
    """
    return int(torch.empty((), dtype=torch.long, device="cpu").random_())


def replayed_layer(layer: nn.Module, explicit: str | None, number: int, *, repeated: bool) -> RecordedLayer | None:
    """
    :param number: of :func:`number_of_pass`.
    :param repeated: whether autograd repeats a forward pass.
    :returns: what this call of a layer has to replay, None where it has to draw.
    """
    if repeated:
        return _replayed.get(number)
    replay = _replay.get()
    if replay is None:
        _replayed.pop(number, None)  # of a pass with the same seed
        return None
    recorded = replay.take(name_in(layer, explicit, replay.names))
    _replayed[number] = recorded
    return recorded


def as_drawn(recorded: RecordedLayer, routing: AssignmentDistribution) -> Tensor:
    """
    :returns: the recorded value, which carries its draw.
    :raises ValueError: if it does not fit the law that would draw in its place.
    """
    value, log_proposal = recorded.value, recorded.log_proposal
    if recorded.num_experts != routing.num_experts:
        raise ValueError(f"the record has {recorded.num_experts} experts where the layer has {routing.num_experts}")
    shape = (*routing.batch_shape, *routing.event_shape)
    if value is None or value.shape != shape:
        got = None if value is None else tuple(value.shape)
        raise ValueError(f"the record has an assignment of shape {got} where the layer's is of shape {tuple(shape)}")
    value = check_padding(value.to(routing.logits.device), routing.mask)
    if not bool(routing.support.check(value).all()):
        raise ValueError(f"the record has an assignment outside of the layer's support, {routing.support}")
    if log_proposal is None:
        return value
    return attach(Draw(value=value, log_proposal=log_proposal.to(value.device))).value
