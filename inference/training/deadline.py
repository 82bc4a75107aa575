"""A process that is asked to stop, and cannot since it waits for another, ends all the same."""

import os
import signal
import threading
from types import TracebackType


class Deadline:
    """
    As a context: SIGTERM leaves the process so many seconds to end by itself.

    Who waits for another process does so in code that no handler of Python's interrupts, so a thread hears of the
    signal. It is for SIGTERM within :class:`~inference.training.interrupts.StopSignals`, which handles it. Outside the
    main thread, where Python allows no handlers, this does nothing.

    :param seconds: after the signal.
    :param line: what the process says when it has not ended by then.
    :param code: how it ends.
    """

    def __init__(self, seconds: float, line: str, code: int) -> None:
        self.seconds, self.line, self.code = seconds, line, code
        self._left = threading.Event()
        self._ends: tuple[int, int] | None = None
        self._before = -1

    def __enter__(self) -> "Deadline":
        if threading.current_thread() is threading.main_thread():
            self._ends = os.pipe()
            os.set_blocking(self._ends[1], False)
            self._before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=self._ends[:1], daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        if self._ends is not None:
            signal.set_wakeup_fd(self._before)
            os.close(self._ends[1])  # which ends the thread

    def _watch(self, read: int) -> None:
        # One byte a signal, its number; nothing when the context is left.
        while (heard := os.read(read, 1)) and heard != bytes([signal.SIGTERM]):
            pass
        os.close(read)
        if heard and not self._left.wait(self.seconds):
            os.write(2, f"{self.line}\n".encode())
            os._exit(self.code)
