"""Files that are either the old one or the new one, whenever the process or the machine dies."""

import os
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, *content: bytes | memoryview, keep: Path | None = None) -> None:
    """
    Write a temporary file in the same folder, force it to disk, and put it in the place of the old one.

    :param content: the parts of the file, one after the other.
    :param keep: where the old file goes, in the same folder; None for nowhere. Whoever dies between the two renames
        leaves it there and nothing at ``path``.
    :raises OSError: naming ``path``; the old file is untouched then.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(folder: Path) -> None:
    """The new name is on disk only when the folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
