"""
The folder of a fit to a table.

::

    OUT/
      table.json             target, options, how columns become numbers, metrics, notes; written last
      estimator.safetensors  the fitted mixture
      rows.csv               rows of the table, for ``show``, and in the first column whether they were held out
      table.checkpoint       networks on the way, and one before it; gone when the fit is done
      report.html            the fit in pictures                                  (when ``show`` was asked for it)
"""

import hashlib
import io
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inference.runs.atomic import write_atomically
from inference.tables.columns import Encoding, numbers_of, words_of
from inference.tables.reading import TableError
from prob_moe.sklearn import MixtureClassifier, MixtureRegressor

#: Of the folder; raised whenever older ones cannot be read as they are.
VERSION = 1
FORMAT = "prob_moe.table"
CONFIG, ESTIMATOR, ROWS, REPORT = "table.json", "estimator.safetensors", "rows.csv", "report.html"

#: The most rows of either part that are kept for ``show``.
KEPT = 1000

#: The first column of ``rows.csv``.
HELD_OUT = "(held out)"

#: What is kept elsewhere than in ``table.json``.
NOT_JSON = ("estimator", "rows", "encoding", "held_out")


@dataclass
class TableRun:
    """
    A fitted table.

    :param file: that the table was in, by name.
    :param target: the column that is explained.
    :param family: the law of y, or "classes".
    :param encoding: how columns become X.
    :param extra: columns with offset, trials and weights, by what they are.
    :param options: of the fit, as given.
    :param metrics: by part, "training" and "validation", and name.
    :param notes: what was said while it was fitted.
    :param estimator: the mixture.
    :param rows: for pictures, as they stand in the file.
    :param held_out: whether these were held out, (rows,).
    """

    file: str
    target: str
    family: str
    encoding: Encoding
    extra: dict[str, str]
    options: dict[str, Any]
    metrics: dict[str, dict[str, float]]
    notes: list[str]
    estimator: Any
    rows: pd.DataFrame
    held_out: np.ndarray
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def is_classifier(self) -> bool:
        return self.family == "classes"

    def target_of(self, table: pd.DataFrame) -> np.ndarray:
        """
        :returns: y, words of classes or numbers.
        :raises TableError: it is missing in the table, or in a row.
        """
        return target_of(table, self.target, self.family)

    def arguments(self, table: pd.DataFrame) -> dict[str, np.ndarray]:
        """:returns: offset and trials for the estimator's methods."""
        return extra_of(table, {name: column for name, column in self.extra.items() if name != "weights"})

    def numbers(self) -> dict[str, Any]:
        """:returns: metrics, notes and shares of the experts, for JSON; what is not finite is None."""
        metrics = {
            part: {name: value if np.isfinite(value) else None for name, value in found.items()}
            for part, found in self.metrics.items()
        }
        return {"metrics": metrics, "notes": self.notes, "shares": self.estimator.shares_.tolist()}

    def save(self, folder: Path) -> None:
        """Write all of it, what makes it a run last."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as aside:
            self.estimator.save(Path(aside) / ESTIMATOR)
            weights = (Path(aside) / ESTIMATOR).read_bytes()
        plain = {name: value for name, value in vars(self).items() if name not in NOT_JSON}
        plain |= {"format": FORMAT, "version": VERSION, "columns": self.encoding.plain()}
        plain |= {"estimator": hashlib.sha256(weights).hexdigest()}
        (folder / CONFIG).unlink(missing_ok=True)
        (folder / REPORT).unlink(missing_ok=True)
        write_atomically(folder / ESTIMATOR, weights)
        rows = self.rows.copy()
        rows.insert(0, HELD_OUT, self.held_out, allow_duplicates=True)
        write_atomically(folder / ROWS, rows.to_csv(index=False).encode())
        write_atomically(folder / CONFIG, f"{json.dumps(plain, indent=2)}\n".encode())

    @classmethod
    def load(cls, folder: Path) -> "TableRun":
        """
        :raises TableError: there is no such run, it is of another version, or a file of it is damaged.
        """
        if not is_table_run(folder):
            raise TableError(f"{folder} holds no fit of a table: python -m inference fit table FILE.csv --out {folder}")
        again = "fit the table again"
        try:
            plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            version = plain["version"]
            if plain["format"] != FORMAT:
                raise KeyError("format")
        except (ValueError, KeyError, TypeError) as error:
            raise TableError(f"{folder / CONFIG} is damaged ({error}): put a copy in its place, or {again}") from None
        if version != VERSION:
            raise TableError(f"{folder} is of version {version}, and this program reads version {VERSION}: {again}")
        try:
            weights = (folder / ESTIMATOR).read_bytes()
            if hashlib.sha256(weights).hexdigest() != plain["estimator"]:
                raise ValueError("its content is not what was written")
            kind: Any = MixtureClassifier if plain["family"] == "classes" else MixtureRegressor
            plain["estimator"] = kind.load(folder / ESTIMATOR)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TableError(
                f"{folder / ESTIMATOR} is damaged ({reason}): put a copy in its place, or {again}"
            ) from None
        try:
            rows = pd.read_csv(io.BytesIO((folder / ROWS).read_bytes()))
            held_out = rows.pop(HELD_OUT).to_numpy(dtype=bool)
        except (OSError, ValueError, KeyError):
            # Only pictures want it.
            rows, held_out = pd.DataFrame(), np.zeros(0, dtype=bool)
        plain["encoding"] = Encoding.of_plain(plain["columns"])
        known = {name: plain[name] for name in cls.__dataclass_fields__ if name in plain}
        return cls(**known, rows=rows, held_out=held_out)


def is_table_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def target_of(table: pd.DataFrame, target: str, family: str) -> np.ndarray:
    """
    :returns: y, words of classes or numbers.
    :raises TableError: it is missing in the table, or in a row, or is no number where one is wanted.
    """
    if target not in table:
        raise TableError(f"the table has no column {target!r} for the target; it has {', '.join(map(str, table))}")
    missing = table[target].isna().to_numpy()
    if missing.any():
        raise TableError(
            f"the target {target!r} is missing in {int(missing.sum())} of {len(table)} rows, first in row "
            f"{int(np.argmax(missing)) + 1}: fill or remove them"
        )
    if family == "classes":
        return words_of(table[target])
    try:
        return numbers_of(table[target], target)
    except TableError as error:
        raise TableError(str(error).replace(f"--categories {target}", "--family classes")) from None


def extra_of(table: pd.DataFrame, columns: dict[str, str]) -> dict[str, np.ndarray]:
    """
    :returns: numbers of columns, by what they are.
    :raises TableError: a column is not there, or a number is missing.
    """
    found = {}
    for name, column in columns.items():
        if column not in table:
            raise TableError(f"the table has no column {column!r} for --{name}; it has {', '.join(map(str, table))}")
        found[name] = numbers_of(table[column], column)
        if np.isnan(found[name]).any():
            row = int(np.argmax(np.isnan(found[name]))) + 1
            raise TableError(f"column {column!r}, of --{name}, is missing in row {row}: fill or remove the row")
    return found
