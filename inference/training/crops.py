"""Minibatches of a text."""

from typing import Any

import torch
from torch import Tensor


class Crops:
    """
    Endless batches of sequences that begin anywhere in a text, each with the bytes that follow; a
    :class:`~inference.training.batches.BatchStream`. A pass has as many bytes as the text, and misses some of them.

    :param text: long (n,).
    :param length: of a sequence, less than n.
    :param batch_size: sequences a batch.
    :raises ValueError: on a batch size below 1.

    >>> x, y = next(Crops(torch.arange(100), length=5, batch_size=3))
    >>> x.shape, bool((y == x + 1).all())
    (torch.Size([3, 5]), True)
    """

    def __init__(self, text: Tensor, *, length: int, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
        self.sequences = text.unfold(0, length + 1, 1)
        self.batch_size = batch_size
        self.length = length

    def __len__(self) -> int:
        return -(-len(self.sequences) // (self.batch_size * self.length))

    def __next__(self) -> tuple[Tensor, ...]:
        begin = torch.randint(len(self.sequences), (self.batch_size,), device=self.sequences.device)
        sequences = self.sequences[begin]
        return sequences[:, :-1], sequences[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        """Empty: where a batch begins is drawn anew."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
