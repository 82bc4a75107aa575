"""A fit of networks to a table that can be stopped, and goes on as if nothing had happened."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inference.runs.checkpoint import before, differences, load_newest, save_checkpoint
from inference.tables.fitting import TableOptions
from inference.tables.reading import TableError
from inference.training.interrupts import InterruptedFit, StopSignals

CHECKPOINT = "table.checkpoint"

#: seconds between two checkpoints
SECONDS = 5.0


class TableKeeper:
    """
    Keeps all fits of networks in one checkpoint.

    :param folder: of the run; made when there is something to keep.
    :param file: the table, of which the content counts.
    :param resume: whether to go on with what is there.
    :param stop: that may ask to stop.
    :raises TableError: there is nothing to go on with, or it was made with other options or another table.
    """

    def __init__(self, folder: Path, file: Path, options: TableOptions, resume: bool, stop: StopSignals) -> None:
        self.path, self.stop = folder / CHECKPOINT, stop
        plain = options.plain()
        self.config = {name: repr(value) for name, value in (plain | plain.pop("estimator")).items()}
        self.config["table"] = hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""
        self.state: dict[str, Any] = {}
        self.written = time.monotonic()
        if resume:
            if not holds_checkpoint(folder):
                raise TableError(
                    f"there is no fit in {folder} to go on with: leave --resume out to start one (linear experts are "
                    "fitted in seconds and keep nothing on the way)"
                )
            config, self.state, _ = load_newest(self.path)
            if changed := differences(config, self.config):
                raise TableError(f"the fit in {folder} was asked for otherwise: {changed}")

    def load(self, number: int) -> dict[str, Any] | None:
        return self.state.get(str(number))

    def keep(self, number: int, state: Callable[[], dict[str, Any]]) -> None:
        now = time.monotonic()
        if self.stop.received is None and now - self.written < SECONDS:
            return
        self.written, self.state[str(number)] = now, state()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(self.path, self.config, self.state)
        if self.stop.received is not None:
            raise InterruptedFit(self.stop.received, self.state[str(number)]["done"])

    def clear(self) -> None:
        """Delete what was kept, when it is not needed any more."""
        for path in (self.path, before(self.path)):
            path.unlink(missing_ok=True)


def holds_checkpoint(folder: Path) -> bool:
    return any(path.exists() for path in (folder / CHECKPOINT, before(folder / CHECKPOINT)))
