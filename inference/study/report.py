"""The study as Markdown, for the README."""

from collections.abc import Mapping

import pandas as pd

from inference.registry.builtin import label
from inference.study.grids import Grid
from inference.study.serving import AS_TRAINED, WAYS
from inference.study.statistics import VIEWS

#: measures of models as served: in words, and by which factor, with how many digits and which unit they are printed
MEANINGS = {
    "error": "test error",
    "nll": "test NLL, nats per datapoint",
    "robust": "test NLL, nats per row, no row costing more than 10",
}
SERVED_ENTRIES = {"error": (100, 2, " %"), "nll": (1, 3, ""), "robust": (1, 3, "")}
#: rows of a table that are named
NAMED = 8

ENTRIES = {"solved": ("solved", 100, 0, " %"), "nll": ("NLL", 1, 2, ""), "error": ("error", 100, 1, " %")}


def report(tables: Mapping[str, pd.DataFrame], grid: Grid) -> str:
    """
    The grid, one row per arm at its best setting, one row per claim in both views, and one row per arm and learning
    rate where nothing else varies, with 95 % intervals; where models were judged as served in several ways, one row per
    arm, with standard errors.

    :param tables: ``arms``, ``contrasts`` and ``settings``, of :func:`~inference.study.statistics.by_arm` and so on;
        where there are any also ``serving`` and ``rows``, of :mod:`inference.study.serving_tables`.
    """
    tasks = [str(task) for task in dict.fromkeys(tables["arms"].task)]
    lines = [f"* {task}: {grid.describe(task)}" for task in tasks]
    shown = [task for task in tasks if not is_served(tables, task)]  # the others have a table of their own
    parts = [lines, _arms(tables["arms"], shown), _claims(tables["contrasts"]), _rates(tables["settings"])]
    if "serving" in tables:
        parts += [_served(tables["serving"], task) for task in dict.fromkeys(tables["serving"].task)]
    if "rows" in tables:
        parts.append(named_rows(tables["rows"]))
    return "\n".join(line for part in parts if part for line in (*part, ""))


def _served(serving: pd.DataFrame, task: str) -> list[str]:
    table = serving[serving.task == task]
    header, body = served_cells(table, behind=True)
    arm, way = served_reference(table)
    behind = f"; in brackets: behind {label(arm)}, {served_words(way)}, ± s.e." if arm else ""
    title = f"{task}, {MEANINGS[table.measure.iloc[0]]}, mean ± s.e. over {int(table.seeds.iloc[0])} seeds{behind}"
    return [f"{title}:", "", *_markdown(header, body)]


def served_words(way: str) -> str:
    """:returns: one of the ways to serve, as tables and pictures call it."""
    return way if way == AS_TRAINED else f"served by {way}"


def served_cells(table: pd.DataFrame, *, behind: bool) -> tuple[list[str], list[list[str]]]:
    """
    Header and cells of a task's arms by way to serve, at the best setting: mean ± s.e.

    :param table: the rows of one task of :func:`~inference.study.serving_tables.by_serving`.
    :param behind: whether to say how far they are behind the reference of the task.
    """
    best = table[table["view"] == VIEWS[0]]
    cells = {(row.arm, row.served): served_entry(row, behind=behind) for _, row in best.iterrows()}
    ways = [way for way in WAYS if way in set(best.served)]
    header = ["trained with", *map(served_words, ways)]
    return header, [[label(arm), *(cells.get((arm, way), "") for way in ways)] for arm in dict.fromkeys(best.arm)]


def served_entry(row: pd.Series, *, behind: bool) -> str:
    """Mean ± s.e. of the measure of the task, and the difference to the reference, paired over seeds."""
    scale, digits, unit = SERVED_ENTRIES[row.measure]
    middle, error = (f"{scale * row[name]:.{digits}f}" for name in (row.measure, f"{row.measure}_se"))
    text = f"{middle} ± {error}{unit}"
    if not behind or pd.isna(row.get("behind")) or (row.arm, row.served) == (row.reference_arm, row.reference_served):
        return text
    return f"{text} ({scale * row.behind:+.{digits}f} ± {scale * row.behind_se:.{digits}f})"


def served_reference(table: pd.DataFrame) -> tuple[str, str]:
    """:returns: arm and way to serve that the others are compared with; ("", "") if it did not run."""
    if "reference_arm" not in table or table.reference_arm.isna().all():
        return "", ""
    row = table[table.reference_arm.notna()].iloc[0]
    return row.reference_arm, row.reference_served


def named_rows(rows: pd.DataFrame) -> list[str]:
    """The test datapoints that single models give (nearly) no probability to, a line a task."""
    lines = []
    for task, table in rows.groupby("task", sort=False):
        worst = table.groupby("row").nats.max().sort_values(ascending=False)
        named = ", ".join(f"{row} ({nats:.3g} nats)" for row, nats in worst.head(NAMED).items())
        more = f" and {len(worst) - NAMED} more" if len(worst) > NAMED else ""
        lines.append(f"* {task}: rows of the table that cost some model most: {named}{more}")
    return lines


def is_served(tables: Mapping[str, pd.DataFrame], task: str) -> bool:
    """:returns: whether the models of a task were judged as served in several ways."""
    return "serving" in tables and task in set(tables["serving"].task)


def _arms(arms: pd.DataFrame, tasks: list[str]) -> list[str]:
    if not tasks:
        return []
    best = arms[(arms["view"] == VIEWS[0]) & arms.task.isin(tasks)]
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
    if contrasts.empty:
        return []
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
