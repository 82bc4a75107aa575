"""Checks of what a router is called with."""

from torch import Tensor

from prob_moe.distributions.base import _check_logits, _check_mask


def checked_arguments(logits: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """
    :param logits: router logits, float (*batch, n, k).
    :param mask: bool, broadcastable to (*batch, n); False for padding.
    :returns: the logits, with 0 for padding, so that whatever stands there (NaN for one) reaches neither a value nor a
        gradient; and the mask, expanded to (*batch, n).
    :raises ValueError: on a wrong dtype or shape.
    """
    _check_logits(logits)
    mask = _check_mask(mask, logits)
    return (logits if mask is None else logits.masked_fill(~mask.unsqueeze(-1), 0.0)), mask
