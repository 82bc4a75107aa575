"""Checks of arguments: of shapes always, of values only where looking at them is affordable."""

import torch
from torch import Tensor


def should_check_values(tensor: Tensor, validate_args: bool | None) -> bool:
    """
    Looking at values makes the host wait for the device and breaks a compiled graph.

    :param tensor: the tensor whose values would be looked at.
    :param validate_args: the caller's wish; None looks where that is cheap: everywhere but on CUDA.
    """
    if torch.compiler.is_compiling():
        return False
    # Not torch's switch for distributions: torch.compile turns that off for the whole process.
    return not tensor.is_cuda if validate_args is None else validate_args


def check_positive_int(name: str, value: object) -> None:
    """
    :raises ValueError: ``value`` is not a positive int.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, but is {value!r}")


def check_plan_shapes(assignment: Tensor, num_experts: int, capacity: int, mask: Tensor | None) -> None:
    """
    :raises ValueError: an argument of :func:`~prob_moe.experts.dispatch_plan` has the wrong type, dtype or shape.
    """
    check_positive_int("num_experts", num_experts)
    check_positive_int("capacity", capacity)
    if assignment.dtype != torch.long:
        raise ValueError(f"assignment must be a long tensor, but has dtype {assignment.dtype}; use assignment.long()")
    if assignment.dim() < 1:
        raise ValueError("assignment must have shape (*batch, n), but is a scalar; use assignment.unsqueeze(0)")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != assignment.shape):
        raise ValueError(
            f"mask must be a bool tensor of the assignment's shape {tuple(assignment.shape)}, but has dtype "
            f"{mask.dtype} and shape {tuple(mask.shape)}; use mask.bool().expand(assignment.shape)"
        )


def check_plan_values(assignment: Tensor, loads: Tensor, capacity: int, mask: Tensor | None) -> None:
    """
    :param loads: datapoints that ``assignment`` gives to every expert, (*batch, k).
    :raises ValueError: ``assignment`` names an unknown expert, or gives an expert more than ``capacity`` datapoints.
    """
    k = loads.shape[-1]
    known = assignment if mask is None else torch.where(mask, assignment, 0)
    if known.numel():
        low, high = (int(extreme) for extreme in known.aminmax())
        if high >= k or ~low >= k:
            raise ValueError(
                f"assignment must name experts 0..{k - 1}, or ~e where e was dropped, but names expert "
                f"{max(high, ~low)}; correct it, or raise num_experts={k}"
            )
    most = int(loads.max())
    if most > capacity:
        raise ValueError(
            f"assignment gives an expert {most} datapoints, more than capacity={capacity}; "
            "raise the capacity, or code the datapoints to be dropped as ~e"
        )


def check_features(name: str, tensor: Tensor, tail: tuple[int, ...], batch_shape: torch.Size) -> None:
    """
    :raises ValueError: ``tensor`` has not the shape (*batch, *tail) with a batch that broadcasts to ``batch_shape``.
    """
    lead = tensor.shape[: max(tensor.dim() - len(tail), 0)]
    aligned = zip(reversed(lead), reversed(batch_shape))
    fits = len(lead) <= len(batch_shape) and all(size in (1, target) for size, target in aligned)
    if not fits or tensor.shape[len(lead) :] != tail:
        raise ValueError(
            f"{name} must have shape {(*batch_shape, *tail)} up to broadcasting of the batch, "
            f"but has shape {tuple(tensor.shape)}"
        )
