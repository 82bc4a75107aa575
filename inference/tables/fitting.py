"""From a table and options to a fitted mixture."""

import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import torch

import prob_moe
from inference.tables.columns import Encoding, learn
from inference.tables.reading import TableError
from inference.tables.table_run import KEPT, TableRun, extra_of, target_of
from prob_moe.sklearn import MixtureClassifier, MixtureRegressor, rows_far_off
from prob_moe.sklearn.selection import words_on_rows

FAMILIES = ("gaussian", "student", "poisson", "binomial", "gamma", "classes")

#: The words of a column that says which part a row belongs to.
PARTS = ("train", "validation")


#: An expert is said to be sharp whose scale is a smaller part of the largest one.
SHARP = 0.02


@dataclass(frozen=True)
class TableOptions:
    """
    :param family: the law of y; None for "gaussian" of numbers and "classes" of words.
    :param router_columns: names in the file; None for all.
    :param expert_columns: likewise.
    :param drop: columns to leave out.
    :param categories: columns that are categories even if they look like numbers.
    :param most_values: of a category.
    :param extra: columns with offset, trials and weights, by what they are.
    :param validation: the share of the rows that are held out.
    :param split_column: says it of every row instead.
    :param estimator: options of the estimator.
    """

    target: str
    family: str | None
    router_columns: tuple[str, ...] | None
    expert_columns: tuple[str, ...] | None
    drop: tuple[str, ...]
    categories: tuple[str, ...]
    most_values: int
    extra: dict[str, str]
    validation: float
    split_column: str | None
    seed: int
    estimator: dict[str, Any]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}


def fit_table(table: pd.DataFrame, file: str, options: TableOptions, keeper: Any = None) -> TableRun:
    """
    :param keeper: of networks while they are trained.
    :raises TableError: table or options are not what they have to be.
    :raises ValueError: the estimator refuses them.
    """
    family = options.family or _family_of(table, options.target)
    y = target_of(table, options.target, family)
    extra = extra_of(table, options.extra)
    held = _held_out(table, options)
    special = {options.target, *options.extra.values(), *([options.split_column] if options.split_column else [])}
    _check_known(table, options, special)
    names = [name for name in table if name not in special and name not in options.drop]
    training = table[~held]
    _check_size(training, options)
    encoding, notes = learn(training, names, list(options.categories), options.most_values)
    x, told = encoding.encode(table)
    notes += told
    kind: Any = MixtureClassifier if family == "classes" else MixtureRegressor
    chosen: dict[str, Any] = {
        name: _features(encoding, columns)
        for name, columns in (("router_columns", options.router_columns), ("expert_columns", options.expert_columns))
    }
    own: dict[str, Any] = {} if family == "classes" else {"family": family}
    estimator = kind(**options.estimator, **own, **chosen, random_state=options.seed)
    arguments = {("sample_weight" if name == "weights" else name): value for name, value in extra.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator._keeper = keeper
        estimator.fit(x[~held], y[~held], **{name: value[~held] for name, value in arguments.items()})
        del estimator._keeper
    notes += [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    notes += _sharp_experts(estimator)
    metrics = {}
    for part, rows in (("training", ~held), ("validation", held)):
        if rows.any():
            given = {name: value[rows] for name, value in extra.items() if name != "weights"}
            metrics[part], note = _metrics(estimator, x[rows], y[rows], given, np.flatnonzero(rows))
            notes += [f"{part}: {each}" for each in note]
    generator = np.random.default_rng(options.seed)
    parts = [generator.permutation(np.flatnonzero(part))[:KEPT] for part in (~held, held)]
    kept = np.sort(np.concatenate(parts))
    return TableRun(
        file=file,
        target=options.target,
        family=family,
        encoding=encoding,
        extra=options.extra,
        options=options.plain(),
        metrics=metrics,
        notes=notes,
        estimator=estimator,
        rows=table.iloc[kept],
        held_out=held[kept],
        versions=_versions(),
    )


def _sharp_experts(estimator: Any) -> list[str]:
    """A note for every expert that describes a few rows almost exactly, which the likelihood likes."""
    scales, notes = getattr(estimator, "scale_", np.ones(1)), []
    for j in np.flatnonzero(scales < SHARP * scales.max()):
        rows = estimator.shares_[j] * estimator.num_observations_
        notes.append(
            f"expert {j} describes some {rows:.0f} rows almost exactly (scale {scales[j]:.3g}, against "
            f"{scales.max():.3g}), which raises the likelihood and may mean nothing: compare the held-out "
            "log-likelihood with that of fewer experts"
        )
    return notes


def _family_of(table: pd.DataFrame, target: str) -> str:
    numeric = target in table and pd.api.types.is_numeric_dtype(table[target])
    return "gaussian" if numeric and not pd.api.types.is_bool_dtype(table[target]) else "classes"


def _held_out(table: pd.DataFrame, options: TableOptions) -> np.ndarray:
    """:returns: whether a row is held out, (n,)."""
    if options.split_column is None:
        held = np.zeros(len(table), dtype=bool)
        count = int(options.validation * len(table))
        held[np.random.default_rng(options.seed).permutation(len(table))[:count]] = True
        return held
    if options.split_column not in table:
        raise TableError(f"the table has no column {options.split_column!r} for --split-column")
    words = table[options.split_column].astype(str).str.strip().str.lower().to_numpy()
    wrong = ~np.isin(words, PARTS)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise TableError(
            f"column {options.split_column!r}, of --split-column, must say train or validation, but says "
            f"{words[row]!r} in row {row + 1}"
        )
    held = words == "validation"
    if held.all():
        raise TableError(f"column {options.split_column!r}, of --split-column, says validation in every row")
    return np.asarray(held)


def _check_known(table: pd.DataFrame, options: TableOptions, special: set[str]) -> None:
    used = (("router-columns", options.router_columns), ("expert-columns", options.expert_columns))
    for name, columns in (*used, ("drop", options.drop), ("categories", options.categories)):
        for column in columns or ():
            if column not in table:
                raise TableError(f"--{name} names {column!r}, which the table does not have; it has {_listed(table)}")
            if name != "drop" and column in special:
                raise TableError(f"--{name} names {column!r}, which is the target or has another part to play")


def _check_size(training: pd.DataFrame, options: TableOptions) -> None:
    count, experts = len(training), options.estimator["num_experts"]
    if count < 2:
        raise TableError(f"there is {count} row to train with: a fit needs at least 2, and in earnest some dozens")
    if experts > count:
        raise TableError(f"--num-experts {experts} is more than the {count} rows to train with: give fewer experts")


def _listed(table: pd.DataFrame) -> str:
    return ", ".join(map(str, table))


def _features(encoding: Encoding, columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else encoding.features_of(list(columns))


def _metrics(
    estimator: Any, x: pd.DataFrame, y: np.ndarray, extra: dict[str, np.ndarray], places: np.ndarray
) -> tuple[dict[str, float], list[str]]:
    """Mean log-likelihood and error of a part, and a note where a few rows decide the mean."""
    try:
        each = estimator.log_likelihood(x, y, **extra)
    except ValueError as error:  # a class that was not there in training
        return {}, [str(error)]
    found = {"rows": float(len(y)), "log-likelihood (nats per row)": float(each.mean())}
    if isinstance(estimator, MixtureClassifier):
        found["accuracy"] = float(estimator.score(x, y))
    else:
        mean = estimator.predict(x, **extra)
        found["root mean square error"] = float(np.sqrt(np.square(y - mean).mean()))
        low, high = estimator.predict_interval(x, 0.9, **extra).T
        found["share within the 90 % interval"] = float(((y >= low) & (y <= high)).mean())
    far = rows_far_off(each)
    # Rows are named as they stand in the file, the first below the header being 1.
    return found, [words_on_rows(estimator, each, far, places[far] + 1)] if len(far) else []


def _versions() -> dict[str, str]:
    return {
        "prob_moe": prob_moe.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "python": platform.python_version(),
    }
