"""Options of commands that are names of the registry."""

from collections.abc import Callable, Mapping

import typer

from inference.registry.names import resolve, spelling


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
