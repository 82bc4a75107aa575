"""The study as Markdown, for the README."""

import pandas as pd

from inference.registry.builtin import label
from inference.study.grids import Grid
from inference.study.statistics import VIEWS

ENTRIES = {"solved": ("solved", 100, 0, " %"), "nll": ("NLL", 1, 2, ""), "error": ("error", 100, 1, " %")}


def report(arms: pd.DataFrame, contrasts: pd.DataFrame, settings: pd.DataFrame, grid: Grid) -> str:
    """
    The grid, one row per arm at its best setting, one row per claim in both views, and one row per arm and learning
    rate where nothing else varies; 95 % intervals throughout.

    :param arms: the table of :func:`~inference.study.statistics.by_arm`.
    :param contrasts: the table of :func:`~inference.study.statistics.contrasts`.
    :param settings: the table of :func:`~inference.study.statistics.by_setting`.
    """
    tasks = [str(task) for task in dict.fromkeys(arms.task)]
    lines = [f"* {task}: {grid.describe(task)}" for task in tasks]
    parts = (lines, _arms(arms, tasks), _claims(contrasts), _rates(settings))
    return "\n".join(line for part in parts if part for line in (*part, ""))


def _arms(arms: pd.DataFrame, tasks: list[str]) -> list[str]:
    best = arms[arms["view"] == VIEWS[0]]
    rows = best.drop_duplicates("arm")[["arm", "objective"]]
    columns = [(task, name) for task in tasks for name in _measures(best[best.task == task])]
    header = ["trained with", "objective", *(f"{task}: {ENTRIES[name][0]}" for task, name in columns)]
    cells = {(row.task, row.arm): row for _, row in best.iterrows()}
    body = [
        [
            label(arm),
            objective,
            *(entry(cells[task, arm], name) if (task, arm) in cells else "" for task, name in columns),
        ]
        for arm, objective in rows.itertuples(index=False)
    ]
    return _markdown(header, body)


def _claims(contrasts: pd.DataFrame) -> list[str]:
    header = ["difference, paired over seeds", "claim", "task", "settings", "seeds", "solved or error: better?"]
    header.append("NLL: better?")
    body = [
        [
            f"{label(row.arm)} − {label(row.minus)}",
            row.claim,
            row.task,
            row["view"],
            str(row.seeds),
            *(f"{entry(row, name)}: {row[f'{name}_verdict']}" for name in (first(row), "nll")),
        ]
        for _, row in contrasts.iterrows()
    ]
    return _markdown(header, body)


def _rates(settings: pd.DataFrame) -> list[str]:
    """Seeds solved at every learning rate, on the tasks where an arm has no other setting."""
    tasks = [
        str(task)
        for task, rows in settings.groupby("task", sort=False)
        if rows.learning_rate.nunique() > 1 and rows.load_balancing.nunique() == 1 and rows.solved.notna().all()
    ]
    table = settings[settings.task.isin(tasks)]
    cells = {(row.task, row.arm, row.learning_rate): entry(row, "solved") for _, row in table.iterrows()}
    body = [
        [label(arm), f"{rate:g}", *(cells.get((task, arm, rate), "") for task in tasks)]
        for arm in dict.fromkeys(table.arm)
        for rate in sorted(table.learning_rate.unique())
    ]
    return _markdown(["trained with", "learning rate", *(f"{task}: solved" for task in tasks)], body) if body else []


def first(row: pd.Series) -> str:
    """What is reported beside the NLL: solved seeds, or the error where nobody knows when a task is solved."""
    return "error" if pd.isna(row.solved) else "solved"


def _measures(rows: pd.DataFrame) -> tuple[str, str]:
    return ("error" if rows.solved.isna().all() else "solved", "nll")


def entry(row: pd.Series, name: str) -> str:
    """Mean and interval of a measure, in per cent where it is a share."""
    _, scale, digits, unit = ENTRIES[name]
    middle, low, high = (f"{scale * row[column]:.{digits}f}" for column in (name, f"{name}_low", f"{name}_high"))
    return f"{middle}{unit} [{low}, {high}]"


def _markdown(header: list[str], body: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
