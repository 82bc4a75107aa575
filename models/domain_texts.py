"""Texts of four domains that every installation has: prose, programs, tables, and prose in another alphabet."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import sklearn.datasets
import torch
from torch import Tensor

from models.text import pydoc_text

DOMAINS = ("prose", "programs", "tables", "ciphered prose")
#: of the standard library, whose source is the second domain; none of them holds the text of the first
MODULES = ("argparse", "ast", "dataclasses", "inspect", "logging", "pathlib", "subprocess", "tarfile", "typing")
#: the most frequent bytes of all domains have a symbol each, the last symbol is for all others
NUM_SYMBOLS = 48


def program_text() -> bytes:
    """The source of some modules of the standard library, one after the other."""
    origins = [importlib.util.find_spec(module) for module in MODULES]
    return b"\n".join(Path(str(spec.origin)).read_bytes() for spec in origins if spec is not None)


def table_text() -> bytes:
    """Tables of scikit-learn, row by row, four digits a number."""
    tables = (sklearn.datasets.load_breast_cancer(), sklearn.datasets.load_wine(), sklearn.datasets.load_diabetes())
    rows = [row for table in tables for row in table.data.tolist()]
    # Otherwise the held-out part would be one of the tables, which is none of those learnt on.
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return "\n".join(" ".join(f"{value:.4g}" for value in rows[place]) for place in order).encode()


@cache
def symbol_texts() -> tuple[Tensor, Tensor, Tensor]:
    """
    The first three domains as symbols 0, ..., 47, from the most frequent byte on, where domains count alike.

    Of a run of equal bytes the first 8 are kept. The text differs between versions of Python.

    :returns: long (n,) each.
    """
    # A ruler of dashes looks alike in all domains.
    runs = re.compile(rb"(.)\1{7,}", flags=re.DOTALL)
    sources = pydoc_text(), program_text(), table_text()
    texts = [torch.tensor(list(runs.sub(rb"\1" * 8, text))) for text in sources]
    shares = sum(text.bincount(minlength=256) / len(text) for text in texts)
    assert isinstance(shares, Tensor)
    symbol = torch.full((256,), NUM_SYMBOLS - 1)
    symbol[shares.argsort(descending=True, stable=True)[: NUM_SYMBOLS - 1]] = torch.arange(NUM_SYMBOLS - 1)
    prose, programs, tables = (symbol[text] for text in texts)
    return prose, programs, tables
