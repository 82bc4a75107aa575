"""Two processes that write into one folder would lose both their runs."""

import fcntl
import os
from pathlib import Path


class FolderLock:
    """
    As a context: keeps other processes of this program out of a folder, until this one leaves or dies.

    :param folder: locked on entry if it exists; else :meth:`take` it when it is made.
    :raises ValueError: if another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> "FolderLock":
        if self.folder.is_dir():
            self.take()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def take(self) -> None:
        if self._descriptor is not None:
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(
                f"another process is writing to {self.folder}: wait for it, or give another --out"
            ) from None
        except OSError:
            pass  # Some network file systems have no locks: then nobody can tell.
        self._descriptor = descriptor
