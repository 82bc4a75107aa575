"""The progress bar that all programs share."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

from inference.runs.exits import errors

console = Console()


def progress_bar(details: str | None = None, description_width: int = 28, console: Console = errors) -> Progress:
    """
    :param details: what stands beside a short bar instead of the count of steps, in rich's format with the task's
        fields: ``"{task.fields[loss]}"``.
    :param description_width: in characters.
    :param console: where it goes; stderr, since stdout is for results. Where it is no terminal, a moving bar would be
        unreadable, and there is none.
    """
    beside: ProgressColumn = MofNCompleteColumn() if details is None else TextColumn(details)
    return Progress(
        TextColumn(f"{{task.description:{description_width}}}"),
        BarColumn(bar_width=40 if details is None else 8),
        beside,
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
