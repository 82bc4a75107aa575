"""The command ``predict``."""

from pathlib import Path
from typing import Annotated

import typer

from inference.runs.atomic import write_atomically
from inference.runs.exits import end, errors
from inference.runs.outputs import check_new_file
from inference.runs.progress import console


def predict(
    folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of a fit of a table.")],
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Rows to predict, with the columns of the fit.")],
    out: Annotated[Path, typer.Option(help="CSV file for the predictions, a line for every row.")],
    coverage: Annotated[float, typer.Option(help="Probability of the interval from lower to upper.")] = 0.9,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """
    Predict the rows of a file by the fit of a table.

    A line for every row: its number; the mean and the ends of an interval, or for classes the most probable one and
    the probability of each; and the probability of every expert.

    Columns are found by their names: their order plays no part, and others than those of the fit are left alone.

    Exit codes: 0 done, 2 bad input.

    Example: python -m inference predict results/fit_table new_rows.csv --out predictions.csv
    """
    # Slow to import; --help need not wait for it.
    from inference.predict.rows import predictions
    from inference.tables.reading import read_table
    from inference.tables.table_run import TableRun

    try:
        check_new_file(out, overwrite=overwrite)
        if not out.absolute().parent.is_dir():
            raise ValueError(f"--out must be a file in a folder that exists, got {out}")
        if not 0 < coverage < 1:
            raise ValueError(f"--coverage must lie between 0 and 1, got {coverage:g}")
        run = TableRun.load(folder)
        table = read_table(file)
        rows, notes = predictions(run, table, coverage)
        write_atomically(out, rows.to_csv(index=False, float_format="%.6g").encode())
    except (ValueError, OSError) as error:
        end(str(error))
    for note in notes:
        errors.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(rows)} rows written to {out}", markup=False, highlight=False, soft_wrap=True)
