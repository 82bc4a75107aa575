"""Datapoints sorted by expert, without a slot that stays empty: for processors, where nothing waits for a device."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from prob_moe._transforms import transforming
from prob_moe.experts.gather import gather_rows
from prob_moe.experts.plan import room_for_all
from prob_moe.experts.segments import segment_affine, segment_affine_relu

# Multiply-adds that take as long as the calls which one more expert costs, forward and backward.
MULTIPLICATIONS_PER_EXPERT = 2**17


class SortedEntries(NamedTuple):
    """
    The entries of an assignment that are processed, by expert, in the order of the datapoints.

    :param order: long (p,); the entry, counted over all batch elements, in each of the p sorted rows.
    :param places: long (entries,); the sorted row of every entry, -1 where it is not processed.
    :param loads: rows of every expert; the sets of experts of a stack one after the other.
    """

    order: Tensor
    places: Tensor
    loads: list[int]


def sort_entries(
    assignment: Tensor, num_experts: int, mask: Tensor | None = None, batch_shape: tuple[int, ...] = ()
) -> SortedEntries:
    """
    Waits for the device.

    >>> sort_entries(torch.tensor([1, 0, ~1, 1]), num_experts=2)
    SortedEntries(order=tensor([1, 0, 3]), places=tensor([ 1,  0, -1,  2]), loads=[1, 2])

    :param assignment: long (*batch, n); entry e in {0..k-1} is processed by expert e, all others by none.
    :param num_experts: k.
    :param mask: bool (*batch, n), False for padding, or None.
    :param batch_shape: the last dimensions of the batch that have experts of their own.
    """
    processed = (assignment >= 0) & (assignment < num_experts)
    if mask is not None:
        processed = processed & mask
    models = math.prod(batch_shape)
    if batch_shape:
        model = torch.arange(models, device=assignment.device).view(*batch_shape, 1)
        assignment = assignment + num_experts * model
    # Whoever is not processed sorts behind the last expert.
    expert = torch.where(processed, assignment, models * num_experts).flatten()
    *loads, _ = torch.bincount(expert, minlength=models * num_experts + 1).tolist()
    order = expert.argsort(stable=True)[: sum(loads)]
    row = torch.arange(order.shape[0], device=order.device)
    return SortedEntries(order, torch.full_like(expert, -1).scatter(0, order, row), loads)


def sorting_pays(loads: Tensor, weights: list[Tensor]) -> bool:
    """
    Whether products on sorted rows are worth a call for every expert, where slots for the largest load take one call
    and rows of padding.

    :param loads: long (*batch, k) on the processor.
    :param weights: of the layers of the experts, (*models, k, d, h) each.
    """
    if loads.is_cuda or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu") or transforming():
        return False
    padding = loads.numel() * room_for_all(loads) - int(loads.sum().item())
    per_row = sum(weight.shape[-2] * weight.shape[-1] for weight in weights)
    calls = math.prod(weights[0].shape[:-2])
    return padding * per_row > calls * MULTIPLICATIONS_PER_EXPERT


def sorted_experts(
    x: Tensor,
    assignment: Tensor,
    mask: Tensor | None,
    weight_hidden: Tensor | None,
    bias_hidden: Tensor | None,
    weight_output: Tensor,
    bias_output: Tensor | None,
    activation: Callable[[Tensor], Tensor],
    num_selected: int,
) -> Tensor:
    """
    Linear experts, or experts with one hidden layer, each on its own datapoints and nothing else.

    The weights are those of :func:`~prob_moe.experts.expert_forward`.

    :param x: (*batch, n, d).
    :param assignment: long (*batch, m·n), entry i belongs to datapoint i % n.
    :param mask: bool (*batch, m·n), or None.
    :param num_selected: m.
    :returns: (*batch, m·n, out); zeros where not processed.
    """
    args = (x, assignment, mask, weight_hidden, bias_hidden, weight_output, bias_output)
    # Tensor subclasses, such as those that carry Pyro's provenance, have no data for a product to write into.
    if has_torch_function(args):
        return handle_torch_function(sorted_experts, args, *args, activation, num_selected)
    *models, k = weight_output.shape[:-2]
    order, places, loads = sort_entries(assignment, k, mask, tuple(models))
    *batch, entries = assignment.shape
    n = entries // num_selected
    elements = math.prod(batch)
    inverse = places.view(elements, num_selected, n).movedim(1, 0).reshape(num_selected, elements * n)
    source = order if num_selected == 1 else order // max(1, entries) * n + order % max(1, n)
    rows = x.expand(*batch, n, x.shape[-1]).reshape(-1, x.shape[-1])
    rows = gather_rows(rows, source.unsqueeze(0), inverse)
    if weight_hidden is not None:
        affine = segment_affine_relu if activation is torch.relu else segment_affine
        rows = affine(rows, *_stacked(weight_hidden, bias_hidden), loads)
        rows = rows if activation is torch.relu else activation(rows)
    rows = segment_affine(rows, *_stacked(weight_output, bias_output), loads)
    out = gather_rows(rows, places.unsqueeze(0), order.unsqueeze(0))
    return out.view(*batch, entries, out.shape[-1])


def _stacked(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """All experts of all models in one dimension."""
    return weight.flatten(0, -3), None if bias is None else bias.flatten(0, -2)
