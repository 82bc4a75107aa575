"""
The folder of a run: the one place that knows what lies where.

::

    OUT/
      config.json               what was asked for: task, options, seeds, dtype, device; versions of the libraries
      fit_TASK.csv              one row per seed: metrics on the test set                         (when the fit is done)
      fit_TASK_curve.csv        a row an epoch and seed: means over the epoch, validation metrics            (likewise)
      fit_TASK_curve.png, fit_TASK_use.png                                                                   (likewise)
      report.html               the whole run in pictures                           (when ``show`` was asked for it)
      seed_0/                   one for each seed
        metrics.csv             one row per step; complete after a crash
        epochs.csv              a row an epoch; complete after a crash
        fit.checkpoint          everything that the next step depends on, a safetensors file
        fit.checkpoint.before   that of before, for when the newest is damaged
        events/                 the same numbers for TensorBoard
      seed_1/ ...

Columns of ``metrics.csv``: ``step`` (steps done, from 1), ``epoch`` (from 1), ``loss`` (nats per datapoint),
``seconds`` (of training so far), ``datapoints_per_second`` (of this step), ``weight_ess`` (of the product of the
weights over layers, a share of n), ``max_mean_load`` (of the fullest layer), ``drop_rate`` (share that not all
layers processed); and for each assignment site of the model, in the order of the layers,
``FIELD/SITE`` for every field of :class:`~prob_moe.diagnostics.RoutingDiagnostics` and ``load/SITE/EXPERT``, the
datapoints that an expert processed; with several experts per datapoint also ``responsibility_entropy/y`` (nats) and
``effective_experts/y`` among the selected. All after ``datapoints_per_second`` is empty except at the steps that were
looked at, the first and every tenth of an epoch, and throughout with rules, which draw nothing. ``epochs.csv`` has the
columns of ``fit_TASK_curve.csv``.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from inference.runs.atomic import write_atomically
from inference.runs.checkpoint import before


class SeedFolder:
    """What one seed of a run leaves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.csv"
        self.epochs = path / "epochs.csv"
        self.checkpoint = path / "fit.checkpoint"
        self.events = path / "events"

    def has_checkpoint(self) -> bool:
        return self.checkpoint.exists() or before(self.checkpoint).exists()

    def clear(self) -> None:
        """Delete the files of an earlier run, and nothing else."""
        for file in (self.checkpoint, before(self.checkpoint), self.metrics, self.epochs):
            file.unlink(missing_ok=True)
        if self.events.is_dir():
            shutil.rmtree(self.events)


class RunFolder:
    """
    :param path: the folder; it need not exist.
    :param writable: whether it is to be written to.
    :raises ValueError: if it cannot be made or written to, and should.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self.config = path / "config.json"
        self.report = path / "report.html"
        if writable:
            self._check_writable()

    def _check_writable(self) -> None:
        path = self.path
        there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "is not a folder" if not there.is_dir() else "is not writable"
            raise ValueError(f"cannot write to {path}: {there} {why}; give another --out")

    def seed(self, seed: int) -> SeedFolder:
        return SeedFolder(self.path / f"seed_{seed}")

    def seeds(self) -> dict[int, SeedFolder]:
        """:returns: what is there, by seed."""
        names = (folder.name.removeprefix("seed_") for folder in self.path.glob("seed_*"))
        return {seed: self.seed(seed) for seed in sorted(int(name) for name in names if name.isdecimal())}

    def read_config(self) -> dict[str, Any] | None:
        """
        :returns: what the run was asked for, or None where there is no run.
        :raises ValueError: if the file is damaged.
        """
        options: dict[str, Any] | None = self._read_config("options")
        return options

    def read_versions(self) -> dict[str, str]:
        """
        :returns: of the libraries that the run was made with, empty where there is no run.
        :raises ValueError: if the file is damaged.
        """
        return self._read_config("versions") or {}

    def read_plugins(self) -> list[str]:
        """
        :returns: the plugins that the run needs, empty where there is no run.
        :raises ValueError: if the file is damaged.
        """
        # Runs of before there were plugins have none.
        return [str(plugin) for plugin in self._read_config("plugins", needed=False) or ()]

    def _read_config(self, part: str, *, needed: bool = True) -> Any:
        try:
            content = json.loads(self.config.read_text(encoding="utf-8"))
            return dict(content[part]) if needed else content.get(part)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.config} is damaged ({error}): put a copy in its place") from error

    def holds_run(self) -> bool:
        return self.config.exists() or any(folder.has_checkpoint() for folder in self.seeds().values())

    def clear(self) -> None:
        """Delete what an earlier run left, and nothing else."""
        for folder in self.seeds().values():
            folder.clear()
        for file in (*self.path.glob("fit_*.csv"), *self.path.glob("fit_*.png")):
            file.unlink()
        self.report.unlink(missing_ok=True)

    def write_config(self, options: dict[str, Any], versions: dict[str, str], plugins: list[str]) -> None:
        """
        :param plugins: that the names among the options are of.
        :raises OSError: if it cannot be written.
        """
        content = json.dumps({"options": options, "versions": versions, "plugins": plugins}, indent=2)
        write_atomically(self.config, f"{content}\n".encode())
