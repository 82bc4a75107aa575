"""How kernels are compiled, run on several threads, and kept apart from what torch does to Python functions.

Threads are Python's, not numba's: a kernel runs without the interpreter's lock, so a batch can be cut into pieces for a
pool. Numba's own layers end the process after a fork (OpenMP) or when two threads call at once (workqueue), and
spin while they wait. The pool is made anew in a forked process, and waits for nobody but its own work.
"""

import functools
import hashlib
import itertools
import logging
import os
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
import torch
from numba.core import event
from numba.core.caching import FunctionCache
from torch._compile import _disable_dynamo

from prob_moe._transforms import refuse_tracing

P = ParamSpec("P")
R = TypeVar("R")

SMALL = 2**13  # entries of a batch below which waking threads takes as long as the work
PIECES = 4  # per thread: problems differ in how long they take

_logger = logging.getLogger("prob_moe")


# Compiling ------------------------------------------------------------------------------------------------------------


@functools.cache
def _sources() -> str:
    """A digest of the source of all kernels. Numba looks at a kernel's own file only, and not at those of the kernels
    that it calls, whose old code would live on in it."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class _Cache(FunctionCache):
    """Numba's cache on disk, whose failures cost time and never a result: it may be full, cut off or taken away."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = self._cache_file._source_stamp, _sources()

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return super().load_overload(signature, target)
        except Exception as error:  # whatever a damaged file raises
            _warn_uncached(f"{type(error).__name__}: {error}")
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            super().save_overload(signature, data)
        except Exception as error:
            _warn_uncached(f"{type(error).__name__}: {error}")


_uncached = False  # whether that has been said


def _warn_uncached(reason: str) -> None:
    global _uncached
    if _uncached:
        return
    _uncached = True
    message = (
        f"prob_moe cannot keep its compiled kernels on disk ({reason}), so every process compiles them again; set the "
        "environment variable NUMBA_CACHE_DIR to a writable folder"
    )
    try:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # where warnings are errors: nothing may fail for want of a cache
        _logger.warning(message)


def kernel(
    function: Callable[..., Any] | None = None, *, from_python: bool = False, only_caller: bool = False, **options: Any
) -> Any:
    """Compile a function at its first call, without the interpreter's lock, and keep it on disk where one can.

    With ``fastmath`` it is always put into its callers: its sums have an order that depends on what is around them. The
    process that compiles a caller would otherwise call the code that it has of the function alone, and those which load
    the caller from the disk the code within, with other last bits.

    :param from_python: whether it is called from Python, too, and not from kernels alone: the way in takes a tenth of
        the time to compile it.
    :param only_caller: whether one place alone calls it: it is compiled there and nowhere else, which saves a good part
        of the time, because a kernel is optimised again with all that it calls.
    :param options: of ``numba.njit``, ``fastmath`` for one.
    """
    if function is None:
        return functools.partial(kernel, from_python=from_python, only_caller=only_caller, **options)
    options |= {"no_cpython_wrapper": not from_python, "no_cfunc_wrapper": True}
    options |= {"inline": "always"} if only_caller else {}
    compiled = numba.njit(nogil=True, forceinline=bool(options.get("fastmath")), **options)(function)
    try:
        compiled._cache = _Cache(function)  # what njit(cache=True) does with numba's own
    except RuntimeError:
        _warn_uncached("neither its own folder nor the home directory is writable")
    return compiled


class _Announcement(event.Listener):
    """One line before the first kernel is compiled: the wait has a reason."""

    made = False

    def on_start(self, event: Any) -> None:
        compiled = event.data["dispatcher"].py_func
        if self.made or not compiled.__module__.startswith("prob_moe."):
            return
        self.made = True
        kept = "" if _uncached else ", once for all runs of this installation"
        _logger.warning("prob_moe compiles its kernels for this processor, which takes up to half a minute%s.", kept)

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announcement())


# Threads --------------------------------------------------------------------------------------------------------------


def num_threads() -> int:
    """As many as torch uses, and no more than ``NUMBA_NUM_THREADS``."""
    return min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)


def batch_kernel(function: Callable[P, None]) -> Callable[P, None]:
    """Compile a function that solves a batch of problems in a loop, and share large batches among threads.

    All its arrays have one problem per entry of the first dimension, or are empty; it writes what it finds into them.
    """
    compiled = kernel(function, from_python=True)

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> None:
        first: Any = arguments[0]
        size = len(first)
        if size < 2 or first.size < SMALL or (threads := num_threads()) < 2:
            compiled(*arguments)
            return
        bounds = np.linspace(0, size, min(size, PIECES * threads) + 1).astype(int).tolist()
        pieces = [
            [value[low:high] if isinstance(value, np.ndarray) else value for value in arguments]
            for low, high in itertools.pairwise(bounds)
        ]
        helpers = [helper for _ in range(threads - 1) if (helper := _help(compiled, pieces))]
        _work_off(compiled, pieces)
        for helper in helpers:
            if not helper.cancel():  # what has not begun by now has nothing left to do
                helper.result()

    return run


def _work_off(compiled: Any, pieces: list[list[Any]]) -> None:
    while True:
        try:
            piece = pieces.pop()
        except IndexError:
            return
        compiled(*piece)


_pool: ThreadPoolExecutor | None = None


def _help(compiled: Any, pieces: list[list[Any]]) -> Future[None] | None:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="prob_moe")
    try:
        return _pool.submit(_work_off, compiled, pieces)
    except RuntimeError:  # the interpreter is about to end, or no thread can be had
        return None


def _forget_pool() -> None:
    """A forked process has the pool, but none of its threads."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


# Torch ----------------------------------------------------------------------------------------------------------------


def leaves_torch(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that hands its tensors to a kernel, or searches in a loop as long as its data want:
    ``torch.compile`` runs it as it is, between two graphs, and ``torch.jit.trace``, which would record its result, or
    its number of steps, for ever, is refused.

    Torch's own lazy form of ``torch.compiler.disable``, which imports the compiler when it is called, not here.
    """

    @functools.wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        refuse_tracing(function.__qualname__)
        return function(*arguments, **named)

    return _disable_dynamo(run)
