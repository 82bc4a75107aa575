"""Tables for the terminal."""

import pandas as pd
from rich import box
from rich.table import Table

from inference.registry.builtin import label
from inference.study.report import MEANINGS, entry, served_cells
from inference.study.statistics import SOLVED_WITHIN, VIEWS


def arm_table(arms: pd.DataFrame, task: str, view: str, grid: str) -> Table:
    """
    Every arm of one task, grouped by objective.

    :param arms: the table of :func:`~inference.study.statistics.by_arm`.
    :param view: one of :data:`~inference.study.statistics.VIEWS`.
    :param grid: the settings that all arms share, in words.
    """
    rows = arms[(arms.task == task) & (arms["view"] == view)]
    first = "error" if rows.solved.isna().all() else "solved"
    meaning = f"; solved: NLL within {SOLVED_WITHIN} nats of the true process" if first == "solved" else ""
    table = _table(
        f"{task}: {view}\n{grid}\nsetting: learning rate, load-balancing weight; [95 % intervals: Wilson, BCa]\n"
        f"held-out data, nats per datapoint{meaning}",
        "trained with",
        *(["setting"] if view == VIEWS[0] else []),
        first,
        "NLL",
    )
    group = None
    for _, row in rows.iterrows():
        if row["group"] != group:
            group = row["group"]
            table.add_row(f"[bold]{group}[/bold]")
        setting = [f"{row.learning_rate:g}, {row.load_balancing:g}"] if view == VIEWS[0] else []
        table.add_row(label(row.arm), *setting, entry(row, first), entry(row, "nll"))
    return table


def contrast_table(contrasts: pd.DataFrame, task: str, view: str) -> Table:
    """The claims on one task, as differences paired over seeds."""
    rows = contrasts[(contrasts.task == task) & (contrasts["view"] == view)]
    first = "error" if rows.solved.isna().all() else "solved"
    table = _table("differences, paired over seeds, and whether they speak for the first arm", "", first, "NLL")
    for _, row in rows.iterrows():
        cells = (f"{entry(row, name)} {row[f'{name}_verdict']:>4}" for name in (first, "nll"))
        table.add_row(f"{label(row.arm)} minus {label(row.minus)}", *cells)
    return table


def serving_table(serving: pd.DataFrame, task: str, grid: str) -> Table:
    """
    Every arm of one task as served by one, two and all experts.

    :param serving: the table of :func:`~inference.study.serving_tables.by_serving`.
    :param grid: the settings that all arms share, in words.
    """
    rows = serving[serving.task == task]
    header, body = served_cells(rows, behind=False)
    title = f"{task}: {MEANINGS[rows.measure.iloc[0]]}, mean ± s.e. over seeds, at the best setting\n{grid}"
    table = _table(title, *header)
    for cells in body:
        table.add_row(*cells)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=number > 0)
    return table
