"""Minibatches whose place in the data can be written down and found again."""

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor


class BatchStream(Protocol):
    """Endless minibatches (x, y). What a task brings of its own has to offer this, and nothing more."""

    def __next__(self) -> tuple[Tensor, ...]: ...

    def __len__(self) -> int:
        """Batches in a pass over the data."""

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: tensors and plain containers. Random numbers are the global generators' affair."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""


class Minibatches:
    """
    Endless passes over the datapoints, each in a new random order; the last batch of a pass may be smaller.

    :param tensors: (n, ...) each.
    :param batch_size: datapoints per batch.
    :param dim: the dimension of the datapoints, counted from the front: what stands before it are data sets of equal
        size, whose batches have the same places.
    :raises ValueError: on a batch size below 1.

    >>> batches = Minibatches(torch.arange(5), batch_size=3)
    >>> [len(next(batches)[0]) for _ in range(4)]
    [3, 2, 3, 2]
    """

    def __init__(self, *tensors: Tensor, batch_size: int, dim: int = 0) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
        self.tensors = tensors
        self.batch_size = batch_size
        self.dim = dim
        self._order = torch.empty(0, dtype=torch.long, device=tensors[0].device)
        self._position = 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def __len__(self) -> int:
        return -(-self.num_datapoints // self.batch_size)

    @property
    def num_datapoints(self) -> int:
        """n."""
        return self.tensors[0].shape[self.dim]

    def __next__(self) -> tuple[Tensor, ...]:
        if self._position >= len(self._order):
            self._order = torch.randperm(self.num_datapoints, device=self.tensors[0].device)
            self._position = 0
        index = self._order[self._position : self._position + self.batch_size]
        self._position += self.batch_size
        return tuple(tensor.index_select(self.dim, index) for tensor in self.tensors)

    def state_dict(self) -> dict[str, Any]:
        """The order of the current pass, long (n,), and the position in it."""
        return {"order": self._order, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :raises ValueError: if the order is one of another number of datapoints.
        """
        if len(state["order"]) not in (0, self.num_datapoints):
            raise ValueError(f"an order of {len(state['order'])} datapoints is not one of {self.num_datapoints}")
        self._order, self._position = state["order"], state["position"]
