"""The English text of Python's own help, as bytes, and how predictable it is from counts alone."""

import math
import string
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from torch import Tensor

NUM_BYTES = 256


class Text(NamedTuple):
    """Bytes as long tensors (n,), the parts in the order of the text."""

    train: Tensor
    validation: Tensor
    test: Tensor


def pydoc_text() -> bytes:
    """
    The topics of ``pydoc_data.topics`` in their order, UTF-8.

    A fifth of it repeats what other topics say, word for word; a paragraph that stood before is left out, so that a
    test part is not a copy of what was trained on. The text differs between versions of Python.
    """
    kept, seen = [], set()
    for paragraph in "\n\n".join(topics.values()).split("\n\n"):
        words = tuple(paragraph.split())
        if words not in seen:
            seen.add(words)
            kept.append(paragraph)
    return "\n\n".join(kept).encode()


def text_data() -> Text:
    """
    The text in three contiguous blocks: the first 80 % for training, then 10 % each for validation and test.

    >>> text = text_data()
    >>> [round(len(part) / sum(map(len, text)), 3) for part in text]
    [0.8, 0.1, 0.1]
    """
    text = torch.tensor(list(pydoc_text()))
    return Text(*text.tensor_split([int(0.8 * len(text)), int(0.9 * len(text))]))


#: kinds of bytes, in the order of :func:`byte_kinds`
KIND_NAMES = [
    "lower case",
    "upper case",
    "digit",
    "space",
    "newline",
    "quote",
    "bracket",
    "other punctuation",
    "beyond ASCII",
]


def byte_kinds(text: Tensor) -> Tensor:
    """
    :param text: bytes, long (*).
    :returns: the index of each byte's kind in ``KIND_NAMES``, long (*).

    >>> [KIND_NAMES[kind] for kind in byte_kinds(torch.tensor(list(b"a(1")))]
    ['lower case', 'bracket', 'digit']
    """
    members = [string.ascii_lowercase, string.ascii_uppercase, string.digits, " ", "\n", "\"'`", "()[]{}"]
    table = torch.full((NUM_BYTES,), KIND_NAMES.index("other punctuation"))
    table[128:] = KIND_NAMES.index("beyond ASCII")
    for kind, characters in enumerate(members):
        table[list(characters.encode())] = kind
    return table.to(text.device)[text]


def windows(text: Tensor, length: int, stride: int) -> tuple[Tensor, Tensor]:
    """
    Cut a text into sequences of bytes, each with the byte that follows.

    :param text: long (n,).
    :param stride: bytes between two beginnings; ``length`` predicts every byte once, less makes windows overlap.
    :returns: inputs and targets, long (windows, length) each; an incomplete last window is left out.
    :raises ValueError: if the text is shorter than a window and the byte that follows.

    >>> windows(torch.arange(6), length=2, stride=2)
    (tensor([[0, 1],
            [2, 3]]), tensor([[1, 2],
            [3, 4]]))
    """
    if length < 1 or stride < 1 or len(text) <= length:
        raise ValueError(
            f"length and stride must be positive and length smaller than the text of {len(text)} bytes, got length="
            f"{length} and stride={stride}"
        )
    cut = text.unfold(0, length + 1, stride)
    return cut[:, :-1], cut[:, 1:]


def unigram_entropy(text: Tensor) -> float:
    r""":returns: :math:`H(b_t)` under the text's own frequencies, bits per byte: no unigram model of it does better."""
    return _entropy(text.bincount(minlength=NUM_BYTES))


def bigram_entropy(text: Tensor) -> float:
    r"""
    :returns: :math:`H(b_t \mid b_{t-1})` under the frequencies of the text's own pairs, bits per byte: no model that
        sees the previous byte only does better on this text.
    """
    pairs = _pairs(text)
    return _entropy(pairs.flatten()) - _entropy(pairs.sum(-1))


def bigram_cross_entropy(train: Tensor, text: Tensor) -> float:
    r"""
    What a bigram model that was fitted to another text needs, bits per byte.

    Its probabilities are :math:`(n_{ab} + u_b) / (n_a + 1)`: one imaginary observation, spread as the unigram
    frequencies u, themselves with half a count more for each of the 256 bytes.

    :param train: what the frequencies n are counted on, long (n,).
    """
    pairs = _pairs(train).double()
    unigram = pairs.sum(0) + 0.5
    unigram = unigram / unigram.sum()
    probabilities = (pairs + unigram) / (pairs.sum(-1, keepdim=True) + 1)
    return float(-probabilities[text[:-1], text[1:]].log2().mean())


def _pairs(text: Tensor) -> Tensor:
    """Counts of a byte and the one that follows, long (256, 256)."""
    return (text[:-1] * NUM_BYTES + text[1:]).bincount(minlength=NUM_BYTES**2).view(NUM_BYTES, NUM_BYTES)


def _entropy(counts: Tensor) -> float:
    """In bits."""
    shares = counts.double() / counts.sum()
    return float(torch.special.entr(shares).sum() / math.log(2))
