"""Options of commands that are names of the registry."""

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from inference.registry.names import resolve, spelling
from inference.registry.plugins import PluginError, load


def name_of(kind: str, known: Callable[[], Mapping[str, object]]) -> Callable[[str | None], str | None]:
    """
    The callback of an option, or argument, that is a name.

    :param kind: what it is a name of, for the message.
    :param known: what there is by name, asked for when plugins have been loaded.
    :returns: from what was typed to the name; a typo is a usage error that tells the nearest name.
    """

    def callback(typed: str | None) -> str | None:
        if typed is None:
            return None
        try:
            return resolve(kind, typed, known())
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return callback


def listed(known: Mapping[str, object]) -> str:
    """The names, for a help text."""
    return ", ".join(map(spelling, known))


def _load_all(plugins: list[str] | None) -> list[str]:
    try:
        return [load(plugin) for plugin in plugins or []]
    except PluginError as error:
        raise typer.BadParameter(str(error)) from None


#: of every command that reads or shows names; eager, so that the names are known when they are read
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE|FILE.py",
        is_eager=True,
        callback=_load_all,
        help="Brings distributions, rules, ... of one's own, by register(registry); may be repeated.",
    ),
]
