"""
What others bring: a module, or a file, with a function ``register(registry)`` that adds entries.

Given by ``--plugin``, or installed: an entry point of the group ``prob_moe.plugins`` that names the module.
"""

import hashlib
import importlib
import importlib.util
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from inference.registry.builtin import REGISTRY

GROUP = "prob_moe.plugins"

#: names of the modules whose entries the registry has
_loaded: set[str] = set()


class PluginError(ValueError):
    """A plugin cannot be used; the message, one line, says which one and why."""


def load(plugin: str) -> str:
    """
    Add what a plugin brings; once, however often it is asked for.

    :param plugin: the name of a module, or a file that ends in .py.
    :returns: how to ask for it from anywhere: the name, or the absolute path.
    :raises PluginError: if there is no such module or file, it cannot be run, or what it adds does not fit.
    """
    is_file = plugin.endswith(".py")
    if is_file:
        plugin = str(Path(plugin).absolute())
    if plugin not in _loaded:
        _register(_of_file(Path(plugin)) if is_file else _of_name(plugin), plugin)
    return plugin


def load_installed() -> None:
    """
    Add what installed packages bring.

    :raises PluginError: naming the package of a plugin that cannot be used.
    """
    for point in entry_points(group=GROUP):
        try:
            load(point.value)
        except PluginError as error:
            package = "an unknown package" if point.dist is None else point.dist.name
            raise PluginError(f"{error} (installed with {package}: update or uninstall it)") from error


def loaded() -> frozenset[str]:
    """:returns: what has been loaded, as :func:`load` returns it."""
    return frozenset(_loaded)


def digest(plugin: str) -> str:
    """:returns: of the plugin's file as it is now; what it computes may change with it."""
    file = Path(plugin) if plugin.endswith(".py") else Path(str(sys.modules[plugin].__file__))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _of_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if name == missing or name.startswith(f"{missing}."):
            raise PluginError(f"plugin {name}: there is no such module; a file ends in .py") from None
        raise PluginError(f"plugin {name} cannot be imported: {error}") from error
    except Exception as error:
        raise _broken(name, error) from error


def _of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise PluginError(f"plugin {path}: there is no such file")
    # Two folders may hold files of one name.
    name = f"prob_moe_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # what pickles its classes looks here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise _broken(str(path), error) from error
    return module


def _register(module: ModuleType, plugin: str) -> None:
    register = getattr(module, "register", None)
    if not callable(register):
        raise PluginError(f"plugin {plugin} has no function register(registry)")
    before = REGISTRY.state()
    REGISTRY.origin = plugin
    try:
        register(REGISTRY)
    except ValueError as error:
        REGISTRY.restore(before)
        raise PluginError(f"plugin {plugin}: {error}") from error
    except Exception as error:
        REGISTRY.restore(before)
        raise _broken(plugin, error) from error
    finally:
        REGISTRY.origin = ""
    _loaded.add(plugin)


def _broken(plugin: str, error: Exception) -> PluginError:
    first = str(error).partition("\n")[0]
    return PluginError(f"plugin {plugin} cannot be run: {type(error).__name__}: {first}")
