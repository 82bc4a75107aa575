"""
All fixed seeds of the tests, shifted: what passes for one lucky seed only is found by another one.

``PROB_MOE_SEED_SHIFT=1000 pytest`` adds 1000 to every seed that the tests, the programs and the public kit set. Seeds
that the library sets for itself (the points of an integral) are part of its results and stay; so do those of doctests,
which print numbers, and of other packages. A generator without a seed is refused at any shift.
"""

import os
import random
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

VARIABLE = "PROB_MOE_SEED_SHIFT"
SHIFT = int(os.environ.get(VARIABLE, "0"))

ROOT = Path(__file__).resolve().parents[1]
#: Code in these folders has its seeds shifted.
OURS = tuple(f"{ROOT / folder}{os.sep}" for folder in ("tests", "inference", "models", "prob_moe/testing"))

#: Larger seeds were drawn from another one, which was shifted already, maybe in another process.
MAX_SEED = 10**6

TorchGenerator = torch.Generator


def install() -> None:
    """Patch what takes a seed, for the rest of the process; twice is as good as once."""
    if hasattr(torch.seed, "__wrapped__"):
        return
    torch.seed = _refused(torch.seed, "torch.seed")
    torch.manual_seed = _shifted(torch.manual_seed, "torch.manual_seed")
    pyro.set_rng_seed = _shifted(pyro.set_rng_seed, "pyro.set_rng_seed")
    random.seed = _shifted(random.seed, "random.seed")
    for name in ("seed", "default_rng", "SeedSequence"):
        setattr(np.random, name, _shifted(getattr(np.random, name), f"np.random.{name}"))
    if SHIFT:
        torch.Generator = _Generator  # type: ignore[misc]


def _called_by_us() -> bool:
    """Whether the caller of a patched function is ours, and no doctest."""
    running = os.environ.get("PYTEST_CURRENT_TEST", "tests/")  # unset while the tests are imported
    return running.startswith("tests/") and sys._getframe(2).f_code.co_filename.startswith(OURS)


def _moved(seed: Any) -> Any:
    return seed + SHIFT if isinstance(seed, int | np.integer) and 0 <= seed < MAX_SEED else seed


def _shifted(function: Callable, name: str) -> Callable:
    """The function, which takes the seed as its first argument."""

    @wraps(function)
    def seeded(seed: Any = None, *rest: Any, **keywords: Any) -> Any:
        if not _called_by_us():
            return function(seed, *rest, **keywords)
        if seed is None:
            raise ValueError(f"{name} without a seed: the test would differ from run to run")
        return function(_moved(seed), *rest, **keywords)

    return seeded


def _refused(function: Callable, name: str) -> Callable:
    @wraps(function)
    def unseeded() -> Any:
        if _called_by_us():
            raise ValueError(f"{name} is no fixed seed: the test would differ from run to run")
        return function()

    return unseeded


class _GeneratorType(type(torch.Generator)):  # type: ignore[misc]
    def __instancecheck__(cls, instance: object) -> bool:
        """Those that torch makes itself are generators too."""
        return isinstance(instance, TorchGenerator)


class _Generator(TorchGenerator, metaclass=_GeneratorType):
    """torch's own is written in C and takes no patch."""

    def manual_seed(self, seed: int) -> TorchGenerator:
        return super().manual_seed(_moved(seed) if _called_by_us() else seed)
