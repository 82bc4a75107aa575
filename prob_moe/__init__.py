"""
Mixture-of-experts routing as an explicit random variable, for Pyro.

What most programs need can be imported from here; ``import prob_moe`` alone loads none of it, nor torch. Rules for
routing are in :mod:`prob_moe.rules`, numerics on plain tensors in :mod:`prob_moe.numerics`, checks of distributions and
estimators of one's own in :mod:`prob_moe.testing`.
"""

from functools import cache
from importlib import import_module
from typing import Any

__version__ = "0.2.0"


@cache
def _rooms() -> dict[str, str]:
    """:returns: the module of every name that can be imported from here, as the stub beside this file has them."""
    import ast
    import pkgutil

    stub = pkgutil.get_data(__name__, "__init__.pyi")
    assert stub is not None
    imports = [line for line in ast.parse(stub).body if isinstance(line, ast.ImportFrom)]
    return {alias.name: str(line.module) for line in imports for alias in line.names}


def __getattr__(name: str) -> Any:
    # Python itself asks for some that begin so.
    if not name.startswith("_") and name in _rooms():
        return getattr(import_module(_rooms()[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_rooms()])
