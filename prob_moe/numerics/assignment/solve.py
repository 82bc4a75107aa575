"""Exact capacity-constrained assignment of datapoints to experts."""

from typing import NamedTuple

import numpy as np
import torch

from prob_moe._transforms import without_derivative
from prob_moe.numerics._capacity import capacity_of_problems, slots_of_experts
from prob_moe.numerics._compiled import leaves_torch
from prob_moe.numerics.assignment._batch import solve_many
from prob_moe.numerics.assignment._solver import INFEASIBLE, NOT_A_NUMBER, TOO_MANY


class Matching(NamedTuple):
    r"""An optimal assignment with its dual.

    :param assignment: (\*batch, n) long, the expert of each datapoint; -1 where it was masked out. With
        ``num_selected`` (\*batch, m, n), ascending within a datapoint.
    :param exchange_costs: (\*batch, k, k) float64, see :func:`~prob_moe.numerics.exchange_costs`.
    :param distances: (\*batch, k, k) float64, see :func:`~prob_moe.numerics.shortest_distances`.
    :param prices: (\*batch, k) float64, see :func:`~prob_moe.numerics.shadow_prices`.
    """

    assignment: torch.Tensor
    exchange_costs: torch.Tensor
    distances: torch.Tensor
    prices: torch.Tensor


@leaves_torch
@without_derivative
def solve_assignment(
    scores: torch.Tensor,
    capacity: int | torch.Tensor,
    *,
    num_selected: int | None = None,
    mask: torch.Tensor | None = None,
) -> Matching:
    r"""The assignment of datapoints to experts that has the largest total score within capacity.

    .. math:: \max_z \sum_i S_{i z_i} \quad \text{subject to} \quad \#\{i : z_i = j\} \le c \text{ for every expert } j.

    With ``num_selected`` = m every datapoint has m distinct experts: the largest
    :math:`\sum_i \sum_{j \in A_i} S_{ij}` over sets of size m. Exchange costs, distances and prices then count single
    places: W[a, b] is the least loss for which a datapoint that has a and not b changes the one for the other.

    Exact up to float64 rounding, for every input: coordinate descent on the dual finds prices that nearly balance the
    experts, and shortest augmenting paths over the k experts (not the n datapoints) repair the rest. Memory is O(n k).
    Scores of float32 and float64 are read in place; CUDA tensors are solved on the CPU and the results moved back once.

    :param scores: (\*batch, n, k) float16, bfloat16, float32 or float64; -inf forbids a pair.
    :param capacity: slots per expert, a positive int with n m <= k * capacity, or a long tensor (\*batch).
    :param num_selected: m, the distinct experts per datapoint, from 1 to k; None means 1.
    :param mask: (\*batch, n) bool, broadcastable; False where a datapoint is absent: it takes no slot.
    :returns: :class:`Matching`, on the device of ``scores``. No gradient flows through it.
    :raises ValueError: for a wrong shape or dtype, a capacity that is too small, NaN or +inf scores, and where -inf
        scores leave no assignment.

    >>> solve_assignment(torch.tensor([[5.0, 4.0], [3.0, 0.0]]), capacity=1).assignment
    tensor([1, 0])
    >>> solve_assignment(torch.tensor([[5.0, 4.0, 0.0], [3.0, 0.0, 1.0]]), capacity=2, num_selected=2).assignment
    tensor([[0, 0],
            [1, 2]])
    """
    check_arguments(scores, mask)
    *batch, n, k = scores.shape
    slots = slots_of_experts(capacity, tuple(batch), n, k)
    picks = 1 if num_selected is None else num_selected
    if isinstance(picks, bool) or not isinstance(picks, int) or not 1 <= picks <= k:
        raise ValueError(f"num_selected must be an int from 1 to k = {k}, but is {num_selected!r}")
    if mask is None and isinstance(capacity, int) and n * picks > k * capacity:
        raise ValueError(_too_many(tuple(scores.shape), capacity, f"{n}", picks))
    matching, status = solve_with_slots(scores, slots, mask, num_selected)
    if status.any():
        raise_failure(status, scores, capacity_of_problems(capacity, tuple(batch)), picks)
    return matching


def solve_with_slots(
    scores: torch.Tensor, slots: np.ndarray, mask: torch.Tensor | None, num_selected: int | None = None
) -> tuple[Matching, np.ndarray]:
    """``solve_assignment`` without its checks, for experts of different capacity.

    :param slots: int64 (b, k), in one piece; an expert without slots must be forbidden to all rows.
    :returns: the matching, on the device of ``scores``, and the status of every problem, (b,).
    """
    *batch, n, k = scores.shape
    values = scores.detach().to("cpu")
    if values.dtype in (torch.float16, torch.bfloat16):
        values = values.float()
    values = values.reshape(-1, n, k) if n else values.new_empty((int(np.prod(batch)), 0, k))
    flat = values.contiguous().numpy()
    size = flat.shape[0]
    if mask is None:
        present = np.empty((0, 0), np.bool_)
    else:
        present = mask.detach().to("cpu").expand(*batch, n).reshape(size, n).contiguous().numpy()
    single = num_selected is None or num_selected == 1
    event = (n,) if num_selected is None else (num_selected, n)
    assignment = np.empty((size, *event), np.int64)
    costs, distances = np.empty((size, k, k)), np.empty((size, k, k))
    prices, status = np.empty((size, k)), np.empty(size, np.int64)
    found = assignment.reshape(size, n) if single else assignment
    solve_many(flat, present, slots, found, costs, distances, prices, status)
    matching = Matching(
        torch.from_numpy(assignment).reshape(*batch, *event).to(scores.device),
        torch.from_numpy(costs).reshape(*batch, k, k).to(scores.device),
        torch.from_numpy(distances).reshape(*batch, k, k).to(scores.device),
        torch.from_numpy(prices).reshape(*batch, k).to(scores.device),
    )
    return matching, status


def check_arguments(scores: torch.Tensor, mask: torch.Tensor | None) -> None:
    """:raises ValueError: for scores or a mask of a wrong dtype or shape."""
    if not isinstance(scores, torch.Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise ValueError(f"scores must be a floating-point tensor, but is {kind}; convert it with scores.float()")
    shape = tuple(scores.shape)
    if scores.dim() < 2 or shape[-1] == 0:
        raise ValueError(f"scores must have shape (*batch, n, k) with k >= 1, but has shape {shape}")
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(f"mask must be a bool tensor, but is {kind}")
    try:
        mask.expand(shape[:-1])
    except RuntimeError:
        raise ValueError(
            f"mask must have the shape of scores without its last dimension, {shape[:-1]}, "
            f"but has shape {tuple(mask.shape)}"
        ) from None


def _too_many(shape: tuple[int, ...], capacity: int, present: str, picks: int) -> str:
    k = shape[-1]
    several = f", {picks} for each" if picks > 1 else ""
    return (
        f"capacity={capacity} is too small: scores of shape {shape} have {present} datapoints for {k} experts with "
        f"{k * capacity} slots{several}; capacity must be at least n{' m' if several else ''} / k"
    )


def raise_failure(status: np.ndarray, scores: torch.Tensor, capacities: torch.Tensor, picks: int = 1) -> None:
    """:raises ValueError: that says what is wrong with the first problem whose status is not 0."""
    first = int(np.flatnonzero(status)[0])
    capacity = int(capacities.reshape(-1)[first])
    batch = tuple(scores.shape[:-2])
    where = f" in batch element {tuple(int(i) for i in np.unravel_index(first, batch))}" if batch else ""
    shape = tuple(scores.shape)
    if status[first] == NOT_A_NUMBER:
        raise ValueError(f"scores of shape {shape} must be finite or -inf, but contain NaN or +inf{where}")
    if status[first] == TOO_MANY:
        raise ValueError(_too_many(shape, capacity, "too many present", picks) + where)
    if status[first] == INFEASIBLE:
        raise ValueError(
            f"scores of shape {shape} are -inf for too many pairs{where}: no assignment within capacity={capacity} "
            "exists; allow more experts or raise the capacity"
        )
