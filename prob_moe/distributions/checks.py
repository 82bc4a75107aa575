"""Whether logits, masks and values are what an assignment distribution takes, and the sentences that say why not."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prob_moe.distributions.support import router_logits

if TYPE_CHECKING:
    from prob_moe.distributions.base import AssignmentDistribution


def check_logits(logits: Tensor) -> None:
    """
    :raises ValueError: if the logits are not floating-point numbers of shape (*batch, n, k).
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"logits must be a tensor of floating-point numbers, got {kind}")
    if logits.dim() < 2 or logits.shape[-1] < 1:
        raise ValueError(f"logits must have shape (*batch, n, k) with k >= 1, got {tuple(logits.shape)}")


def _all_finite(logits: Tensor) -> bool:
    """
    Looks at the values once, which waits for the device.

    :returns: whether there are logits, none of them infinite or NaN.
    """
    if logits.numel() == 0:
        return False
    low, high = logits.detach().aminmax()  # NaN where there is one
    return bool((low > -torch.inf) & (high < torch.inf))


def check_logit_values(logits: Tensor, num_selected: int = 1) -> bool:
    """
    Looks at the values, which waits for the device.

    :param num_selected: how many experts each datapoint needs.
    :returns: whether there are logits, none of which forbids an expert.
    :raises ValueError: if the logits contain NaN or +inf, or allow too few experts to a datapoint.
    """
    if _all_finite(logits):  # the common case
        return True
    legal = bool(router_logits.check(logits.detach()).all())
    allowed = (logits.detach() > -torch.inf).sum(-1)
    if legal and (num_selected == 1 or not bool((allowed < num_selected).any())):
        return False
    shape = tuple(logits.shape)
    if bool(torch.isnan(logits).any()):
        raise ValueError(f"logits of shape {shape} contain NaN")
    if bool((logits == torch.inf).any()):
        raise ValueError(f"logits of shape {shape} contain +inf; forbid the other experts with -inf instead")
    if not legal:
        row = (allowed == 0).nonzero()[0].tolist()
        raise ValueError(f"logits of shape {shape} forbid every expert to datapoint {row}: its row is -inf throughout")
    row = (allowed < num_selected).nonzero()[0].tolist()
    raise ValueError(
        f"logits of shape {shape} allow datapoint {row} only {int(allowed[tuple(row)])} experts, fewer than "
        f"num_selected={num_selected}: its others are -inf; select fewer, or allow more"
    )


def check_mask(mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """
    :returns: the mask expanded to (*batch, n) of the logits.
    :raises ValueError: if the mask is not bool, or does not broadcast.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"mask must be a bool tensor, got {kind}")
    try:
        return mask.expand(logits.shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not broadcast to (*batch, n) = {tuple(logits.shape[:-1])}"
        ) from None


def check_num_selected(num_selected: int | None, num_experts: int) -> None:
    """
    :raises ValueError: unless it is None, or an int from 1 to k.
    """
    if num_selected is None:
        return
    if isinstance(num_selected, bool) or not isinstance(num_selected, int) or not 1 <= num_selected <= num_experts:
        raise ValueError(
            f"num_selected must be None or an int from 1 to k = {num_experts}, the number of experts, got "
            f"{num_selected!r}"
        )


def check_value(routing: "AssignmentDistribution", value: Tensor) -> None:
    """
    :raises ValueError: unless ``value`` is an assignment of the procedure's form, in its support.
    """
    name, event = type(routing).__name__, routing.event_shape
    if not isinstance(value, Tensor) or value.dtype != torch.long:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: value must be a long tensor of expert indices, got {kind}")
    if value.shape[-len(event) :] != event:
        several = "" if routing.num_selected is None else f"(m, n) = {tuple(event)}: m experts of each of "
        raise ValueError(
            f"{name}: value of shape {tuple(value.shape)} must end in {several}n = {routing.num_datapoints} datapoints"
        )
    try:
        torch.broadcast_shapes(value.shape[: -len(event)], routing.batch_shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: value of shape {tuple(value.shape)} does not broadcast to batch_shape "
            f"{tuple(routing.batch_shape)} + event_shape {tuple(event)}"
        ) from None
    if not bool(routing.support.check(value).all()):
        raise ValueError(
            f"{name}: value of shape {tuple(value.shape)} is outside the support {routing.support}; "
            "was it drawn by another distribution?"
        )
