"""From a file to a table, with everything wrong said in one line."""

import csv
import warnings
from pathlib import Path

import pandas as pd

#: What separates columns; the first that stands in the header.
SEPARATORS = (",", ";", "\t")


class TableError(ValueError):
    """Something about a table; the message is one line that says where, and what to do."""


def read_table(path: Path) -> pd.DataFrame:
    """
    :param path: a CSV file with a header (columns apart by comma, semicolon or tab), or a ``.parquet`` file where
        pyarrow is installed.
    :returns: the table with columns as strings, numbers or booleans; empty cells and "NA" are missing.
    :raises TableError: it is no such file, has no rows, or column names are missing or there twice.
    """
    if not path.exists():
        raise TableError(f"there is no file {path}")
    if path.is_dir():
        raise TableError(f"{path} is a folder: give a CSV file")
    table = _parquet(path) if path.suffix == ".parquet" else _csv(path)
    if not len(table):
        raise TableError(f"{path} has a header and no rows")
    return table


def _csv(path: Path) -> pd.DataFrame:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            head = file.read(2**16)
        if "\0" in head:
            raise UnicodeError("it has bytes that are no text")
        lines = head.splitlines()
        if not lines or not lines[0].strip():
            raise TableError(f"{path} is empty: give a CSV file with a header")
        separator = next((each for each in SEPARATORS if each in lines[0]), ",")
        names = [name.strip() for name in next(csv.reader(lines[:1], delimiter=separator))]
        _check_names(path, names)
        with warnings.catch_warnings():
            # Lines that are too long would be cut.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, sep=separator, encoding="utf-8-sig", skipinitialspace=True, index_col=False)
    except UnicodeError as error:
        raise TableError(f"{path} is no CSV file in UTF-8 ({error}): export the table as one") from None
    except (pd.errors.ParserError, pd.errors.ParserWarning, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise TableError(f"{path} is no CSV file ({reason}): every line must have {len(names)} columns") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from None
    table.columns = pd.Index(names)
    return table


def _parquet(path: Path) -> pd.DataFrame:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise TableError(f"{path} wants pyarrow, which is not there: pip install pyarrow, or give a CSV file") from None
    try:
        table = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise TableError(f"{path} is no parquet file, or a part of one: {reason}") from None
    table.columns = pd.Index([str(name) for name in table.columns])
    _check_names(path, list(table.columns))
    return table.reset_index(drop=True)


def _check_names(path: Path, names: list[str]) -> None:
    for place, name in enumerate(names):
        if not name:
            raise TableError(f"{path}: column {place + 1} has no name in the header; give it one")
        if name in names[:place]:
            raise TableError(f"{path}: two columns are named {name!r}; rename one")
    if all(_is_number(name) for name in names):
        raise TableError(f"{path}: the first line has numbers only ({', '.join(names[:3])}); a header is needed")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
