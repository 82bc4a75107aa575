"""What a draw knows beside its value, and how that travels with the value."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

#: the attribute of a drawn tensor that holds its draw
_ATTRIBUTE = "_prob_moe_draw"


@dataclass(frozen=True)
class Draw:
    """
    A value of an assignment distribution with what only the drawing call knows.

    It travels on the value: :func:`draw_of` finds it again on ``value`` itself, on what ``pyro.sample`` returns, on a
    replayed or copied value. Indexing, arithmetic and ``Predictive`` make other tensors, which nobody drew.

    :param value: the assignment, long (*sample, *batch, n), or (*sample, *batch, m, n) with m experts per datapoint.
    :param log_proposal: log-probability with which every entry was proposed and processed, float64 in the shape of
        ``value``, nats without gradient: the importance weight under any router is exp(router_log_prob - log_proposal).
        Plus infinity where the datapoint was dropped, whose weight is 0; 0 for padding.
    """

    value: Tensor
    log_proposal: Tensor


@dataclass(frozen=True)
class MatchingDraw(Draw):
    """
    A draw of :class:`~prob_moe.distributions.GumbelMatching`.

    :param scores: perturbed logits S, (*sample, *batch, n, k).
    :param prices: shadow prices v, float64 (*sample, *batch, k).
    :param distances: exchange distances D, float64 (*sample, *batch, k, k).
    """

    scores: Tensor
    prices: Tensor
    distances: Tensor


@dataclass(frozen=True)
class SetDraw(Draw):
    """
    A draw of conditional Poisson sets, by :class:`~prob_moe.distributions.IndependentRouting` or
    :class:`~prob_moe.distributions.CapacitySkip` with ``num_selected``.

    :param log_odds: log p of the router that drew, float64 (*batch, n, k).
    """

    log_odds: Tensor


@dataclass(frozen=True)
class RoundingDraw(Draw):
    """
    A draw of :class:`~prob_moe.distributions.DependentRounding`.

    :param marginals: r, float64 (*batch, n, k).
    :param expert_prices: float64 (*batch, k), the ``initial_prices`` of a later, similar problem; None where the
        marginals have no prices.
    """

    marginals: Tensor
    expert_prices: Tensor | None


AnyDraw = TypeVar("AnyDraw", bound=Draw)


def attach(draw: AnyDraw) -> AnyDraw:
    """:returns: the same draw, whose value carries it from now on."""
    plain: Any = detach_provenance(draw.value)
    # A copy, not the tensor itself: a cycle would hold the memory until the garbage collector runs, and what is written
    # into the tensor later can be told from what was drawn.
    setattr(plain, _ATTRIBUTE, (replace(draw, value=plain.clone()), _writes(plain)))
    return draw


def draw_of(value: Tensor, kind: type[AnyDraw]) -> AnyDraw | None:
    """
    :param value: a tensor, drawn or not, with or without Pyro's provenance.
    :param kind: the class of draw that is wanted.
    :returns: the draw that the value carries; None where nobody drew it, or another law did.
    :raises ValueError: if the value was written to in place after it had been drawn.
    """
    plain: Any = detach_provenance(value)
    kept = getattr(plain, _ATTRIBUTE, None)
    if kept is None or not isinstance(kept[0], kind):
        return None
    draw, version = kept
    # The counter of writes spares the look at the values, which waits for the device. Copies count anew.
    if (version is None or _writes(plain) != version) and not torch.equal(draw.value, plain):
        raise ValueError(
            f"value of shape {tuple(value.shape)} was written to in place after it had been drawn, so what the draw "
            "knew of it no longer holds: write into value.clone()"
        )
    found: AnyDraw = replace(draw, value=value)
    return found


def _writes(value: Tensor) -> int | None:
    """How often a tensor was written to; None where torch does not count, in inference mode."""
    return None if value.is_inference() else value._version
