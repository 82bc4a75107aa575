"""An oracle that remembers: right on what it was given, in any order and shape."""

import pytest
import torch

from models.remembered import Remembered


def test_groups_are_found_again_in_any_order_and_shape() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 30)
    group = torch.arange(200) % 7
    known = Remembered(x, group)
    order = torch.randperm(200)
    assert known(x[order]).equal(group[order])
    assert known(x[order].view(4, 50, 30)).equal(group[order].view(4, 50))
    assert known(x[:1]).tolist() == [0]


def test_the_same_datapoint_is_in_one_group() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [3.0, 4.0]])
    assert Remembered(x, torch.tensor([1, 1, 0]))(x).tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="every datapoint must be in one group, but 1 are in two"):
        Remembered(x, torch.tensor([1, 0, 0]))
