"""The text, its split, and the entropies against direct counts."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch

from models.text import (
    KIND_NAMES,
    bigram_cross_entropy,
    bigram_entropy,
    byte_kinds,
    pydoc_text,
    text_data,
    unigram_entropy,
    windows,
)


def test_split_is_fixed_and_contiguous_and_no_paragraph_stands_twice() -> None:
    text = text_data()
    assert bytes(torch.cat(text).tolist()) == pydoc_text()
    assert all(torch.equal(*parts) for parts in zip(text, text_data()))
    paragraphs = Counter(" ".join(p.split()) for p in pydoc_text().decode().split("\n\n"))
    assert max(paragraphs.values()) == 1


def test_windows_predict_every_byte_once() -> None:
    text = torch.arange(10)
    x, y = windows(text, length=3, stride=3)
    assert torch.equal(y.flatten(), text[1:])
    assert torch.equal(x, y - 1)
    # An incomplete last window is left out.
    assert windows(text[:9], length=3, stride=3)[0].shape == (2, 3)
    overlapping, _ = windows(text, length=3, stride=1)
    assert overlapping.shape == (7, 3)


@pytest.mark.parametrize(("length", "stride"), [(10, 1), (0, 1), (3, 0)])
def test_windows_that_do_not_fit(length: int, stride: int) -> None:
    with pytest.raises(ValueError, match=f"text of 10 bytes, got length={length} and stride={stride}"):
        windows(torch.arange(10), length=length, stride=stride)


def test_entropies_against_a_direct_count() -> None:
    text = text_data().test
    content, n = text.tolist(), len(text)
    unigram = -sum(count / n * math.log2(count / n) for count in Counter(content).values())
    assert unigram_entropy(text) == pytest.approx(unigram, rel=1e-12)
    pairs, before = Counter(pairwise(content)), Counter(content[:-1])
    bigram = -sum(count / (n - 1) * math.log2(count / before[a]) for (a, _), count in pairs.items())
    assert bigram_entropy(text) == pytest.approx(bigram, rel=1e-12)


def test_fitted_bigram_against_a_direct_count() -> None:
    train, text = text_data().train[:3000], text_data().test[:500]
    pairs, before = Counter(pairwise(train.tolist())), Counter(train.tolist()[:-1])
    followers = Counter(train.tolist()[1:])
    unigram = {b: (followers[b] + 0.5) / (len(train) - 1 + 128) for b in range(256)}
    assert sum(unigram.values()) == pytest.approx(1)
    bits = [-math.log2((pairs[a, b] + unigram[b]) / (before[a] + 1)) for a, b in pairwise(text.tolist())]
    assert bigram_cross_entropy(train, text) == pytest.approx(sum(bits) / len(bits), rel=1e-12)
    # No bigram model needs less than the text's own.
    assert bigram_cross_entropy(train, text) > bigram_entropy(text)


def test_every_byte_has_the_kind_it_looks_like() -> None:
    kinds = dict(zip('aZ7 \n"(+', byte_kinds(torch.tensor(list(b'aZ7 \n"(+'))).tolist()))
    assert [KIND_NAMES[kind] for kind in kinds.values()] == KIND_NAMES[:8]
    assert KIND_NAMES[int(byte_kinds(torch.tensor(200)))] == "beyond ASCII"
