"""Capacity by rank of choice, against a loop."""

import pytest
import torch

from prob_moe.rules import top_choices, within_capacity


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1, 20), (2, 20), (3, 2, 3, 20), (2, 0)])
@pytest.mark.parametrize("capacity", [1, 4, 100])
def test_within_capacity_equals_a_loop(shape, capacity, masked):
    *batch, m, n = shape
    choices = torch.randint(5, shape)
    mask = torch.rand(*batch, n) < 0.7 if masked else None
    ours = within_capacity(choices, capacity, 5, mask)
    assert ours.shape == choices.shape
    for index in torch.ones(batch).nonzero().tolist():
        taken = [0] * 5
        for rank in range(m):
            for i in range(n):
                e = int(choices[(*index, rank, i)])
                entry = int(ours[(*index, rank, i)])
                if mask is not None and not mask[(*index, i)]:
                    assert entry == -1
                else:
                    assert entry == (e if taken[e] < capacity else ~e)
                    taken[e] += 1


def test_top_choices():
    scores = torch.tensor([[0.1, 0.5, 0.3], [2.0, -torch.inf, 1.0]])
    assert top_choices(scores, 2).tolist() == [[1, 0], [2, 2]]
    with pytest.raises(ValueError, match="num_selected=4 exceeds the number of experts, 3"):
        top_choices(scores, 4)
