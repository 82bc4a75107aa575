"""Two processes that write into one folder would lose both their runs."""

from pathlib import Path

from filelock import FileLock, Timeout


class FolderLock:
    """
    As a context: keeps other processes of this program out of a folder, until this one leaves or dies.

    :param folder: locked on entry if it exists; else :meth:`take` it when it is made.
    :raises ValueError: if another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = FileLock(folder / ".lock")

    def __enter__(self) -> "FolderLock":
        if self.folder.is_dir():
            self.take()
        return self

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def take(self) -> None:
        if self._lock.is_locked:
            return
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ValueError(
                f"another process is writing to {self.folder}: wait for it, or give another --out"
            ) from None
