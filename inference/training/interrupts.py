"""SIGINT and SIGTERM as requests to stop after the current step."""

import signal
import threading
from types import FrameType
from typing import Any


class InterruptedFit(Exception):
    """
    :param signum: the signal that asked to stop.
    :param step: steps done.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}")
        self.signum = signum


class StopSignals:
    """
    As a context: notes SIGINT and SIGTERM instead of dying by them.

    A second signal acts as it always did, for a step that never ends. Outside the main thread, where Python allows no
    handlers, this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                # Who started the process may have wanted a signal ignored, as shells do for jobs in the background.
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
