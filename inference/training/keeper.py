"""Keeps a fit from being lost: metrics after every step, a checkpoint every so many and when asked to stop."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from inference.runs.checkpoint import CheckpointError, differences, load_newest, save_checkpoint
from inference.runs.metrics_log import MetricsLog
from inference.runs.run_folder import SeedFolder
from inference.training.interrupts import InterruptedFit, StopSignals
from inference.training.look import Row
from inference.training.run import Fit


class FitKeeper:
    """
    As a context around a fit: closes the files.

    :param folder: where it all goes.
    :param config: what the fit is asked for, by name.
    :param checkpoint_every: steps between two checkpoints; there is one at the end, too.
    :param signals: whether to stop.
    :param begin: called when the first step is done, before anything is written: a fit that cannot do one leaves no
        trace.
    :param tell: called with a line that the user should read.
    :param resume: whether to go on from a checkpoint that is there already.
    :param writes: whether it is this process that writes, of those which share the fit.
    """

    def __init__(
        self,
        folder: SeedFolder,
        config: dict[str, Any],
        checkpoint_every: int,
        signals: StopSignals,
        begin: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] = lambda line: None,
        *,
        resume: bool = True,
        writes: bool = True,
    ) -> None:
        self.folder = folder
        self.config = config
        self.checkpoint_every = checkpoint_every
        self.signals = signals
        self._begin, self._tell = begin, tell
        self._resume = resume
        self._writes = writes
        self._metrics, self._epochs = MetricsLog(folder.metrics), MetricsLog(folder.epochs)
        self._writer: Any = None
        self._num_epochs = 0  # written
        self._kept_at: int | None = None  # steps done at the checkpoint
        self._damaged = False  # the newest checkpoint

    def __enter__(self) -> "FitKeeper":
        return self

    def __exit__(self, *exception: object) -> None:
        self._metrics.close()
        self._epochs.close()
        if self._writer is not None:
            # All up to the checkpoint is written; on a full disk, what ended the fit is told, and not this.
            with suppress(OSError):
                self._writer.close()

    def resume(self, fit: Fit) -> None:
        """
        Go on from the checkpoint, if that is asked for and there is one.

        :raises CheckpointError: if it cannot be read, or belongs to another configuration.
        """
        if not self._resume:
            return
        try:
            if self.folder.has_checkpoint():
                self._load(fit)
            if self._writes:
                self._metrics.cut(fit.step_count)
                self._epochs.cut(fit.epoch_count)
        except (CheckpointError, ValueError, OSError) as error:
            fit.sharing.agree(str(error))  # no process waits for one that has left
            raise
        fit.sharing.agree(steps_of_the_checkpoint=fit.step_count)
        self._num_epochs = fit.epoch_count

    def _load(self, fit: Fit) -> None:
        config, state, problem = load_newest(self.folder.checkpoint, fit.task.train[0].device)
        changed = differences(config, self.config)
        if changed:
            raise CheckpointError(f"{self.folder.checkpoint} belongs to another configuration: {changed}")
        fit.load_state_dict(state)
        self._kept_at, self._damaged = fit.step_count, problem is not None
        if problem is not None and self._writes:
            self._tell(f"note: {problem}, after {self._steps()}")

    def keep(self, fit: Fit, row: Row) -> None:
        """
        :raises InterruptedFit: after a signal, with the checkpoint written.
        :raises CheckpointError: if it cannot be written.
        :raises OSError: if the metrics cannot.
        """
        if self._writes:
            self._write(fit, row)
        # A signal that one process gets stops all of them, after the same step.
        signum = fit.sharing.largest(self.signals.received or 0)
        last = fit.step_count == fit.num_steps
        if signum or last or fit.step_count % self.checkpoint_every == 0:
            state = fit.state_dict()
            if self._writes:
                # Rows first: a checkpoint never knows of steps that the tables do not have.
                self._metrics.sync()
                self._epochs.sync()
                self._writer.flush()
                save_checkpoint(self.folder.checkpoint, self.config, state, keep=not self._damaged)
            self._kept_at, self._damaged = fit.step_count, False
        if signum and not last:
            raise InterruptedFit(signum, fit.step_count)

    def _write(self, fit: Fit, row: Row) -> None:
        if self._writer is None:
            self._open(fit.step_count)
        self._metrics.append(row)
        self._to_events(row, fit.step_count)
        for epoch in fit.curve[self._num_epochs :]:
            self._epochs.append(epoch)
            self._to_events({f"epoch/{name}": value for name, value in epoch.items()}, fit.step_count)
        self._num_epochs = fit.epoch_count

    def last_checkpoint(self) -> str:
        """:returns: where it is and how old, in words."""
        if self._kept_at is None:
            return "there is no checkpoint before it"
        return f"the last good checkpoint, after {self._steps()}, is {self.folder.checkpoint}"

    def _steps(self) -> str:
        return "1 step" if self._kept_at == 1 else f"{self._kept_at} steps"

    def _open(self, step: int) -> None:
        # Slow to import; --help need not wait for it.
        from torch.utils.tensorboard import SummaryWriter

        self._begin()
        if not self._resume:
            self.folder.clear()
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(self.folder.events), purge_step=step)

    def _to_events(self, row: Row, step: int) -> None:
        for name, value in row.items():
            if name not in ("step", "epoch", "epoch/epoch", "epoch/seed"):
                self._writer.add_scalar(name, value, step)
