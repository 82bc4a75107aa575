"""Minibatches of a text."""

from typing import Any

import torch
from torch import Tensor


class Crops:
    """
    Endless batches of sequences that begin anywhere in a text, each with the bytes that follow; a
    :class:`~inference.training.batches.BatchStream`. A pass has as many bytes as the text, and misses some of them.
    Where they begin is drawn by a generator of their own, seeded here by torch's: two ways to train see the same
    batches, also where one of them draws more than the other.

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
        self._generator = torch.Generator(text.device)
        self._generator.manual_seed(int(torch.randint(2**62, ())))

    def __len__(self) -> int:
        return -(-len(self.sequences) // (self.batch_size * self.length))

    def __next__(self) -> tuple[Tensor, ...]:
        device = self.sequences.device
        begin = torch.randint(len(self.sequences), (self.batch_size,), device=device, generator=self._generator)
        sequences = self.sequences[begin]
        return sequences[:, :-1], sequences[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        """Where the generator stands."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the batch that would have come next."""
        # A checkpoint that is read for a GPU has all its tensors there; generators want theirs here.
        self._generator.set_state(state["generator"].cpu())
