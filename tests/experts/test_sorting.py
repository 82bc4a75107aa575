"""Products on sorted rows: who is where, and a cost that follows the datapoints."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from prob_moe.experts import BatchedExperts, sorting
from prob_moe.experts.sorting import sort_entries
from tests.experts.oracle import random_assignment


@pytest.mark.parametrize("models", [(), (2,)])
def test_sorted_entries_are_the_processed_ones_by_expert(models):
    assignment = random_assignment(3, *models, 12, num_experts=4, capacity=5)
    mask = torch.rand(assignment.shape) < 0.8
    order, places, loads = sort_entries(assignment, 4, mask, models)
    flat, present = assignment.flatten(), mask.flatten()
    model = torch.arange(flat.numel()) // 12 % 2 if models else torch.zeros_like(flat)
    wanted = [
        entry
        for m in range(2 if models else 1)
        for e in range(4)
        for entry in range(flat.numel())
        if present[entry] and flat[entry] == e and model[entry] == m
    ]
    assert order.tolist() == wanted
    assert len(loads) == (8 if models else 4)
    assert sum(loads) == len(wanted)
    assert places[order].tolist() == list(range(len(wanted)))
    assert (places >= 0).sum() == len(wanted)


def operations(assignment, capacity):
    """Floating-point operations of a forward and backward pass in matrix products."""
    layer = BatchedExperts(8, 64, 128, 64)
    x = torch.randn(len(assignment), 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x, assignment, capacity=capacity).sum().backward()
    return counter.get_total_flops()


def test_operations_follow_the_datapoints_and_not_the_largest_load():
    n = 2048
    balanced = torch.arange(n) % 8
    skewed = torch.where(torch.arange(n) < n // 2, balanced, 0)
    needed = operations(balanced, n // 8)
    assert operations(skewed, None) == needed
    assert operations(skewed[skewed > 0], None) < needed
    assert operations(skewed, n // 2 + n // 16) > 4 * needed


def test_few_rows_of_padding_are_cheaper_than_a_call_for_every_expert(monkeypatch):
    assignment = torch.tensor([0, 0, 1])
    layer = BatchedExperts(2, 4, 4, 4)
    monkeypatch.setattr(sorting, "sort_entries", None)  # must not be asked
    assert layer(torch.randn(3, 4), assignment).shape == (3, 4)
