"""Results of runs in files that are named by all settings of the run."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.registry.plugins import digest
from inference.runs.atomic import write_atomically
from inference.study.arms import all_arms
from inference.study.settings import Run

#: raised whenever the same settings give other results, so that older files are not read
FORMAT = 6


def short(value: float) -> float:
    """Six digits are more than a seed tells, and keep the files small."""
    return float(f"{value:.6g}")


@dataclass(frozen=True)
class Record:
    """
    What is kept of a run.

    :param metrics: on the part that the run is judged on, by name, one number per seed: nll (nats per datapoint), error
        (as served), where the true process is known, truth (its NLL), and those of
        :func:`~inference.study.serving.measure_serving`.
    :param seconds: CPU time.
    :param curve: quartiles over seeds of the held-out NLL by step: step, low, median, high.
    :param picture: of the first seed, where x is a number: x, true means, lines of the experts, router probabilities,
        served output.
    :param stopped_at: the step before which loss and gradients were finite for the last time, if training stopped.
    :param rows: the worst of its datapoints by way to serve, for each seed, see the same function.
    """

    settings: dict[str, Any]
    metrics: dict[str, list[float]]
    seconds: float
    curve: dict[str, list[float]] = field(default_factory=dict)
    picture: dict[str, list[Any]] = field(default_factory=dict)
    stopped_at: int | None = None
    rows: dict[str, list[Any]] = field(default_factory=dict)


class Cache:
    """
    A folder of records, a file each.

    A file appears whole or not at all, so an interrupted study goes on where it stopped.

    :param folder: made when the first record is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, run: Run) -> Path:
        """Named by a hash of all settings and the format, and of the plugin that the arm is of."""
        settings = {"format": FORMAT, **run.settings()}
        origin = all_arms()[run.arm].origin
        if origin:
            settings["plugin"] = digest(origin)
        text = json.dumps(settings, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"

    def load(self, run: Run) -> Record | None:
        """:returns: the record of a run, or None where there is none that can be read."""
        try:
            return Record(**json.loads(self.path(run).read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None

    def store(self, run: Run, record: Record) -> None:
        """Write a record; what stood there before stays whole until it is replaced."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path(run), json.dumps(vars(record)).encode())
