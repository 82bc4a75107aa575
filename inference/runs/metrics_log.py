"""A CSV file that grows line by line and is complete up to the last line after a crash."""

import csv
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from inference.runs.atomic import write_atomically


class MetricsLog:
    """
    Appends rows; every row reaches the operating system before the next step starts.

    :param path: created with the first row, whose keys are the columns. Later rows may leave some empty.

    The first column counts up: after a resume, rows behind the checkpoint's are cut off and written again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None
        self._columns: list[str] = []

    def append(self, row: dict[str, Any]) -> None:
        """
        :raises ValueError: on a column that the first row does not have.
        :raises OSError: naming the file.
        """
        new = not self._columns
        if new:
            self._columns = list(row)
        elif not row.keys() <= set(self._columns):
            raise ValueError(f"columns {sorted(row.keys() - set(self._columns))} are not in the header of {self.path}")
        line = io.StringIO()
        writer = csv.DictWriter(line, self._columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
        try:
            if self._file is None:
                self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  (stays open between rows)
            self._file.write(line.getvalue())
            self._file.flush()
        except OSError as error:
            # What stays in the buffer would fail again later, without a name; a line in part is cut at the resume.
            with suppress(OSError):
                self.close()
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def cut(self, last: int) -> None:
        """
        Drop the rows whose first column is above ``last``, and a last line that is not whole.

        :raises ValueError: if rows up to there are missing.
        """
        self.close()
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.exists() else []
        header, rows = lines[:1], [line for line in lines[1:] if line.endswith("\n")]
        kept = [line for line in rows if int(line.partition(",")[0]) <= last]
        if last > 0 and (not kept or int(kept[-1].partition(",")[0]) != last):
            raise ValueError(f"{self.path} lacks rows up to step {last}, which the checkpoint has done")
        if kept:
            self._columns = next(csv.reader(header))
            write_atomically(self.path, "".join(header + kept).encode())
        else:
            self._columns = []
            self.path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Force all rows to disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
