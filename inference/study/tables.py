"""Tables for the terminal."""

import pandas as pd
from rich.table import Table

from inference.study.grids import Grid
from inference.study.statistics import SOLVED_WITHIN, VIEWS


def arm_table(task: str, arms: pd.DataFrame, grid: Grid) -> Table:
    """Of one task: every arm at its best setting and averaged over the grid, which is printed above."""
    solvable = arms.solved.notna().any()
    meaning = f"solved: NLL within {SOLVED_WITHIN} nats per datapoint of the true process; " if solvable else ""
    table = Table(
        title=f"{task}\n{grid.describe(task)}\n({meaning}held-out data; [95 % bootstrap intervals])",
        title_justify="left",
    )
    columns = ["solved", "error"] if solvable else ["error"]
    table.add_column("trained with (best learning rate, load balancing)")
    for name in ("NLL, best setting", *columns, "NLL, grid", *columns):
        table.add_column(name, justify="right")
    views = [arms[arms["view"] == view].set_index("arm") for view in VIEWS]
    group = None
    for arm, row in views[0].iterrows():
        if row["group"] != group:
            group = row["group"]
            table.add_section()
            table.add_row(f"[bold]{group}[/bold]")
        cells = [_cell(view.loc[arm], name) for view in views for name in ("nll", *columns)]
        table.add_row(f"{arm} ({row.learning_rate:g}, {row.load_balancing:g})", *cells)
    return table


def _cell(row: pd.Series, name: str) -> str:
    """Mean and interval, in per cent where it is a share of seeds."""
    scale, digits = (100, 0) if name == "solved" else (1, 3)
    middle, low, high = (f"{scale * row[column]:.{digits}f}" for column in (name, f"{name}_low", f"{name}_high"))
    return f"{middle} [{low}, {high}]" + (" %" if name == "solved" else "")


def contrast_table(contrasts: pd.DataFrame) -> Table:
    """All claims, as paired differences."""
    table = Table(title="Differences, paired over seeds [95 % bootstrap intervals]", title_justify="left")
    for name in ("claim", "task", "settings", "solved", "NLL, nats"):
        table.add_column(name, justify="right" if name in ("solved", "NLL, nats") else "left")
    for _, row in contrasts.iterrows():
        solved = "" if pd.isna(row.solved) else _cell(row, "solved")
        table.add_row(f"{row.arm} minus {row.minus}", row.task, row["view"], solved, _cell(row, "nll"))
    return table
