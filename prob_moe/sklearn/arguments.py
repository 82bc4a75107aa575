"""Checks of what estimators are given: one line that names argument and value."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.validation import _check_sample_weight

from prob_moe.sklearn.table import Floats


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """
    :raises ValueError: ``value`` is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, choices))}")


def check_count(name: str, value: Any, least: int = 1) -> int:
    """
    :raises ValueError: ``value`` is no int of at least ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} must be an int of at least {least}")
    return int(value)


def check_fraction(name: str, value: Any) -> float:
    """
    :raises ValueError: ``value`` is not strictly between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < 1:
        raise ValueError(f"{name}={value!r} must be a number between 0 and 1")
    return float(value)


def check_positive(name: str, value: Any) -> float:
    """
    :raises ValueError: ``value`` is no positive finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < np.inf:
        raise ValueError(f"{name}={value!r} must be a positive number")
    return float(value)


def column_places(name: str, chosen: Any, num_columns: int, names: Sequence[str] | None) -> np.ndarray:
    """
    :param chosen: names or places of columns; None for all.
    :param names: of all columns, where X has them.
    :returns: places.
    :raises ValueError: a column is named twice or does not exist.
    """
    if chosen is None:
        return np.arange(num_columns)
    if isinstance(chosen, str):
        raise ValueError(f"{name}={chosen!r} must be a list of columns, [{chosen!r}]")
    places: list[int] = []
    for column in chosen:
        if isinstance(column, str):
            if names is None:
                raise ValueError(f"{name} names column {column!r}, but X has no column names; give its place")
            if column not in list(names):
                raise ValueError(f"{name} names column {column!r}, which X does not have; it has {', '.join(names)}")
            places.append(list(names).index(column))
        else:
            if isinstance(column, bool) or not isinstance(column, int | np.integer) or not 0 <= column < num_columns:
                raise ValueError(f"{name} has {column!r}, which is no column of X: 0 to {num_columns - 1}")
            places.append(int(column))
    if len(set(places)) < len(places):
        raise ValueError(f"{name}={chosen!r} has a column twice")
    return np.array(places, dtype=np.int64)


def frequencies(sample_weight: Any, x: Floats) -> Floats:
    """
    :param sample_weight: how often every row counts, or one number for all; None for once.
    :returns: (n,).
    :raises ValueError: a frequency is negative or not finite, all of them are zero, or there are too few or too many.
    """
    if sample_weight is not None and not np.any(np.asarray(sample_weight)):
        raise ValueError("sample_weight must be positive for at least one row, but is zero for all of them")
    weights: Floats = _check_sample_weight(sample_weight, x, dtype=np.float64)
    if (weights < 0).any():
        row = int(np.argmax(weights < 0))
        raise ValueError(f"sample_weight must not be negative, but is {weights[row]} in row {row}")
    return weights


def row_numbers(name: str, value: Any, num_rows: int) -> Floats | None:
    """
    :param value: a number for every row, or one for all of them; None for nothing.
    :returns: (n,).
    :raises ValueError: there are too few or too many, or one of them is not finite.
    """
    if value is None:
        return None
    numbers = np.asarray(value, dtype=np.float64)
    if numbers.ndim == 0:
        numbers = np.full(num_rows, float(numbers))
    if numbers.shape != (num_rows,):
        raise ValueError(f"{name} must have a number for each of {num_rows} rows, but has shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise ValueError(f"{name} must be finite, but is {numbers[row]} in row {row}")
    return numbers


def unit_numbers(units: Any, num_rows: int) -> np.ndarray | None:
    """
    :param units: a name, of any sort, for every row; None where each row is one by itself.
    :returns: numbers from 0, (n,).
    :raises ValueError: there are too few or too many.
    """
    if units is None:
        return None
    labels = np.asarray(units)
    if labels.shape != (num_rows,):
        raise ValueError(f"units must have a name for each of {num_rows} rows, but has shape {labels.shape}")
    return np.unique(labels, return_inverse=True)[1].ravel()
