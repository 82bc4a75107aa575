"""
From columns to numbers, by rules that a fit learns and a prediction follows.

=====================  =================================================================================================
a column of            becomes
=====================  =================================================================================================
numbers, true/false    itself; where one is missing the mean of the training rows, and if any is missing among these a
                       second column says so, 1 or 0
words (categories)     a column of 0 and 1 for every value but the most frequent one; a missing value is a value; of
                       more than ``most_values`` values the most frequent are kept and the others are one, ``(other)``;
                       a value that was not there in training is ``(other)``, or if there is none the most frequent one
one value only         nothing; it is dropped, and a note names it
words, most of them    nothing; it names rows, is dropped, and a note says so
different
dates                  an error: there is more than one way to make numbers of dates
numbers and words      an error, unless it is declared to be a category
=====================  =================================================================================================
"""

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from inference.tables.reading import TableError

OTHER, MISSING = "(other)", "(missing)"

#: The share of numbers among the words of a column from which it is a mistake, not a category.
MOSTLY_NUMBERS = 0.5

DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([T ]\d{1,2}:\d{2}.*)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}( \d{1,2}:\d{2}.*)?")


@dataclass(frozen=True)
class Column:
    """
    What has been learnt of one.

    :param mean: of the numbers in training; None of categories.
    :param has_missing: whether a number was missing in training.
    :param values: of a category, the most frequent one first; empty of numbers.
    """

    name: str
    mean: float | None
    has_missing: bool
    values: tuple[str, ...]

    @property
    def features(self) -> list[str]:
        """Names of what it becomes."""
        if self.mean is not None:
            return [self.name] + [f"{self.name} missing"] * self.has_missing
        return [f"{self.name}={value}" for value in self.values[1:]]

    def encode(self, cells: pd.Series, notes: list[str]) -> list[np.ndarray]:
        """
        :param notes: takes a line where a value is missing or unseen that was not so in training.
        :raises TableError: words stand where numbers stood.
        """
        if self.mean is not None:
            numbers = numbers_of(cells, self.name)
            missing = np.isnan(numbers)
            if missing.any() and not self.has_missing:
                notes.append(f"column {self.name!r}: {_rows(missing)} missing, taken as the mean {self.mean:.4g}")
            return [np.where(missing, self.mean, numbers)] + [missing.astype(float)] * self.has_missing
        words, known = words_of(cells), np.array(self.values)
        unseen = ~np.isin(words, known)
        if unseen.any():
            stands_for = OTHER if OTHER in self.values else self.values[0]
            new = sorted({str(word) for word in words[unseen]} - {MISSING})[:3] or ["a missing value"]
            if OTHER not in self.values:
                what = ", ".join(map(repr, new))
                notes.append(
                    f"column {self.name!r}: {_rows(unseen)} unseen in training ({what}), taken as {stands_for!r}"
                )
            words = np.where(unseen, stands_for, words)
        return [(words == value).astype(float) for value in self.values[1:]]


@dataclass(frozen=True)
class Encoding:
    """The columns of X, by their names in the file."""

    columns: tuple[Column, ...]

    @property
    def features(self) -> list[str]:
        return [feature for column in self.columns for feature in column.features]

    def features_of(self, names: list[str]) -> list[str]:
        """:returns: the features of some columns; those that were dropped have none."""
        return [feature for column in self.columns if column.name in names for feature in column.features]

    def encode(self, table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """
        :returns: X, and notes on what was missing or unseen.
        :raises TableError: a column is not there, or has words where it had numbers.
        """
        missing = [column.name for column in self.columns if column.name not in table]
        if missing:
            raise TableError(f"the table lacks column {', '.join(map(repr, missing))}, which the fit was made with")
        notes: list[str] = []
        arrays = [array for column in self.columns for array in column.encode(table[column.name], notes)]
        return pd.DataFrame(dict(zip(self.features, arrays)), index=table.index), notes

    def plain(self) -> list[dict[str, Any]]:
        """For JSON."""
        return [asdict(column) for column in self.columns]

    @classmethod
    def of_plain(cls, plain: list[dict[str, Any]]) -> "Encoding":
        return cls(tuple(Column(**{**each, "values": tuple(each["values"])}) for each in plain))


def learn(table: pd.DataFrame, names: list[str], categories: list[str], most_values: int) -> tuple[Encoding, list[str]]:
    """
    :param table: the training rows.
    :param names: the columns to be made numbers of.
    :param categories: those that are categories even if they look like numbers.
    :param most_values: of a category.
    :returns: the encoding, and notes on what was dropped or lumped together.
    :raises TableError: a column has dates, or numbers and words, or nothing is left.
    """
    notes: list[str] = []
    columns = []
    for name in names:
        cells = table[name]
        if cells.dropna().nunique() + cells.isna().any() < 2:
            notes.append(f"column {name!r} has one value in all training rows: dropped")
        elif name not in categories and _is_numeric(cells, name):
            numbers = numbers_of(cells, name)
            columns.append(Column(name, float(np.nanmean(numbers)), bool(np.isnan(numbers).any()), ()))
        else:
            values = _values(cells, name, most_values, notes)
            if values:
                columns.append(Column(name, None, False, values))
    if not columns:
        raise TableError(f"no column is left to explain the target: {'; '.join(notes) or 'the table has no other'}")
    return Encoding(tuple(columns)), notes


def numbers_of(cells: pd.Series, name: str) -> np.ndarray:
    """
    :returns: numbers, nan where one is missing.
    :raises TableError: a word stands there, or a number is infinite; with its row, counted from 1 below the header.
    """
    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
    wrong = np.isnan(numbers) & cells.notna().to_numpy()
    if wrong.any():
        row = int(np.argmax(wrong))
        raise TableError(
            f"column {name!r} has numbers, but {cells.iloc[row]!r} in row {row + 1}: mend the cell, empty it if it is "
            f"missing, or give --categories {name}"
        )
    if np.isinf(numbers).any():
        row = int(np.argmax(np.isinf(numbers)))
        raise TableError(f"column {name!r} is infinite in row {row + 1}: mend the cell, or empty it if it is missing")
    return numbers


def words_of(cells: pd.Series) -> np.ndarray:
    """:returns: the cells as words; whole numbers without a point, so that missing cells do not change them."""
    whole = pd.api.types.is_float_dtype(cells) and bool((cells.dropna() % 1 == 0).all())
    return np.array(
        [MISSING if pd.isna(cell) else str(int(cell) if whole else cell) for cell in cells.tolist()], dtype=str
    )


def _is_numeric(cells: pd.Series, name: str) -> bool:
    if pd.api.types.is_datetime64_any_dtype(cells):
        _refuse_dates(cells.dropna().iloc[0], name)
    if pd.api.types.is_numeric_dtype(cells):
        return True
    words = cells.dropna().astype(str)
    if words.map(lambda word: bool(DATE.fullmatch(word.strip()))).all():
        _refuse_dates(words.iloc[0], name)
    return bool(pd.to_numeric(words, errors="coerce").notna().mean() > MOSTLY_NUMBERS)


def _refuse_dates(example: object, name: str) -> None:
    raise TableError(
        f"column {name!r} has dates ({example}): make numbers of them (a year, days since a day), or give --drop {name}"
    )


def _values(cells: pd.Series, name: str, most_values: int, notes: list[str]) -> tuple[str, ...]:
    values, counts = np.unique(words_of(cells), return_counts=True)
    values = values[np.argsort(-counts, kind="stable")]
    if len(values) <= most_values:
        return tuple(map(str, values))
    if len(values) > len(cells) / 2:
        notes.append(
            f"column {name!r} has {len(values)} different words in {len(cells)} rows, which name rows: dropped"
        )
        return ()
    notes.append(
        f"column {name!r} has {len(values)} values: the {most_values - 1} most frequent are kept, others are one"
    )
    return (*map(str, values[: most_values - 1]), OTHER)


def _rows(wrong: np.ndarray) -> str:
    return f"{int(wrong.sum())} row{'s' if wrong.sum() > 1 else ''}"
