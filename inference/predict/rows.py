"""What a mixture says of rows, a line for each."""

import numpy as np
import pandas as pd

from inference.tables.table_run import TableRun


def predictions(run: TableRun, table: pd.DataFrame, coverage: float) -> tuple[pd.DataFrame, list[str]]:
    """
    :param table: with the columns that the fit was made with; others are of no use.
    :param coverage: of the interval, between 0 and 1.
    :returns: a line for every row: its number in the file, from 1; the mean of y and the ends of an interval, or the
        most probable class and the probabilities of all; and the probabilities of the experts given x. Beside it notes
        on what was missing or unseen.
    :raises TableError: a column is not there, or has words where it had numbers.
    """
    x, notes = run.encoding.encode(table)
    arguments, estimator = run.arguments(table), run.estimator
    columns: dict[str, np.ndarray] = {"row": np.arange(1, len(table) + 1)}
    if run.is_classifier:
        probabilities = estimator.predict_proba(x)
        columns["class"] = estimator.classes_[probabilities.argmax(1)]
        columns |= {f"probability {name}": p for name, p in zip(estimator.classes_, probabilities.T)}
    else:
        columns["mean"] = estimator.predict(x, **arguments)
        ends = estimator.predict_interval(x, coverage, **arguments)
        columns["lower"], columns["upper"] = ends.T
    columns |= {f"expert {j}": p for j, p in enumerate(estimator.responsibilities(x).T)}
    return pd.DataFrame(columns), notes
