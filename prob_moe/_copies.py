"""Copies of what hangs on a graph of autograd."""

import copy
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")


def copy_off_the_graph(original: T, memo: dict[int, Any]) -> T:
    """
    What ``__deepcopy__`` returns for an object whose tensors may have been computed: as ``pickle`` does, and where
    torch refuses, the copy's tensors are leaves that require a gradient where the original's do.
    """
    new = object.__new__(type(original))
    memo[id(original)] = new
    for name, value in vars(original).items():
        if isinstance(value, Tensor) and value.grad_fn is not None:
            memo[id(value)] = value.detach().clone().requires_grad_()
        new.__dict__[name] = copy.deepcopy(value, memo)
    return new
