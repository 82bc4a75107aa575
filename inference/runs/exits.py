"""How a command ends when something is wrong: one line on stderr, and an exit code. 0 ok, 2 bad input."""

import re
import sys
from typing import Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from inference.registry.names import nearest

errors = Console(stderr=True)


def note(line: str) -> None:
    """Print one line on stderr that the user should read, and go on."""
    errors.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)


def tell(message: str) -> None:
    """Print one line of what is wrong, whatever the width of the terminal."""
    # Messages may hold brackets, which are not markup.
    errors.print(message.partition("\n")[0], style="red", markup=False, highlight=False, soft_wrap=True)


def end(message: str, code: int = 2) -> NoReturn:
    """
    Print one line, and leave.

    :param code: 2 on bad input, 128 + signal number after a signal.
    """
    tell(message)
    raise typer.Exit(code)


def _clear(message: str) -> str:
    """Without the prefix of a validator, and with the nearest name where one was not known."""
    message = message.replace("Value error, ", "")
    unknown = re.search(r"'([^']*)' is not one of (.*)", message)
    meant = nearest(unknown[1], re.findall(r"'([^']*)'", unknown[2])) if unknown else ""
    return message.rstrip(". ") + meant if meant else message


class OneLineErrors(TyperGroup):
    """A group of commands whose usage errors are one line, too, and whose names may be two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if " ".join(args[:2]) in self.commands:
            args = [" ".join(args[:2]), *args[2:]]
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs.get("standalone_mode", True):
            return super().main(*args, **kwargs)
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
        except typer.Abort:
            code = 1
        except Exception as error:
            # Click's usage errors, by what they offer: typer's releases bring different classes of the same name.
            if not hasattr(error, "format_message"):
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()  # type: ignore[attr-defined]
            else:
                line = f"{_clear(error.format_message())} (--help tells what there is)"
                errors.print(" ".join(line.split()), style="red", markup=False, highlight=False, soft_wrap=True)
            code = 2
        sys.exit(code if isinstance(code, int) else 0)
