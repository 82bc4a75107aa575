"""The names of layers: where they stand in the network that is being called."""

import sys
import weakref
from collections.abc import Container, Iterator
from types import FrameType

from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.trace_messenger import TraceMessenger
from torch import nn

# All of torch's and Pyro's modules are called through it, compiled and wrapped ones too.
_CALL = nn.Module._call_impl.__code__

_found: "weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[nn.Module], str]]" = weakref.WeakKeyDictionary()


def name_in(layer: nn.Module, explicit: str | None, taken: set[str]) -> str:
    """
    :param taken: the names in use.
    :returns: the name of this call of a layer.
    :raises ValueError: if an explicit name is in use.
    """
    if explicit is None:
        return free_name(module_path(layer) or "experts", taken)
    if explicit in taken:
        raise ValueError(f"name={explicit!r} is used twice in one network; give each call of a layer a name of its own")
    return explicit


def names_in_trace() -> set[str]:
    """The sites so far of the trace that is being made; Pyro asks for unique names within a trace only."""
    traces = [messenger.trace for messenger in _PYRO_STACK if isinstance(messenger, TraceMessenger)]
    return set(traces[-1].nodes) if traces else set()


def module_path(module: nn.Module) -> str:
    """
    Called within the module's ``forward``.

    :returns: the module's dotted path in the outermost network that contains it among those being called, without what
        ``torch.compile`` and data parallelism wrap around; the empty string where the module itself is that network.
    """
    for root in reversed(list(_callers())):
        path = _path_in(root, module)
        if path is not None:
            return path.replace("_orig_mod.", "").removeprefix("module.")
    return ""


def free_name(wanted: str, taken: Container[str]) -> str:
    """
    :returns: the name wanted, with a number behind it where it is taken.

    >>> free_name("experts", {"experts", "experts:2"})
    'experts:3'
    """
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}:{count}"
    return name


def _callers() -> Iterator[nn.Module]:
    """The modules that are being called, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _CALL:
            yield frame.f_locals["self"]
        frame = frame.f_back


def _path_in(root: nn.Module, module: nn.Module) -> str | None:
    known = _found.get(module)
    if known is not None and known[0]() is root and _stands_at(root, known[1], module):
        return known[1]
    for path, part in root.named_modules():
        if part is module:
            _found[module] = (weakref.ref(root), path)
            return path
    return None


def _stands_at(root: nn.Module, path: str, module: nn.Module) -> bool:
    try:
        return root.get_submodule(path) is module
    except AttributeError:
        return False
