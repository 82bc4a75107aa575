"""The study as Markdown."""

from dataclasses import dataclass

import pandas as pd

from inference.registry.builtin import label
from inference.routing_study.gate import ENOUGH
from inference.routing_study.summary import compute_frame, final_frame, gate_frame
from inference.study.serving import WAYS

#: measures in words, and by which factor, with how many digits and which unit they are printed
MEASURES = {
    "nll": ("nats per datapoint", 1, 3, ""),
    "robust": ("nats per datapoint, none costing more than 10", 1, 3, ""),
    "error": ("error", 100, 2, " %"),
}


@dataclass(frozen=True)
class Report:
    """
    :param frames: gates, final and compute, of :mod:`inference.routing_study.summary`.
    """

    frames: dict[str, pd.DataFrame]

    @property
    def markdown(self) -> str:
        """The gates, and for every task that passed the arms at equal steps and at equal compute."""
        parts = [gate_lines(self.frames["gates"])]
        for task in dict.fromkeys(self.frames["final"].get("task", [])):
            parts += [
                [f"### {task}"],
                arm_lines(self.frames["final"], task),
                compute_lines(self.frames["compute"], task),
            ]
        return "\n\n".join("\n".join(part) for part in parts) + "\n"


def report(table: pd.DataFrame) -> Report:
    """
    :param table: of :mod:`inference.routing_study.schema`.
    """
    frames = {"gates": gate_frame(table), "final": final_frame(table), "compute": compute_frame(table)}
    return Report(frames)


def gate_lines(gates: pd.DataFrame) -> list[str]:
    """Which tasks depend on routing."""
    body = []
    for _, row in gates.iterrows():
        words, *_ = MEASURES[row.measure]
        ahead = f"{number(row.ahead, row.measure)} ± {number(row.error, row.measure)}"
        passed = "yes" if row.passed else f"does not depend on routing (below {ENOUGH:g} standard errors)"
        body.append([row.task, words, label(row.better), ahead, f"{row.errors:.1f}", str(row.seeds), passed])
    header = ["task", "measure", "better of oracle and exact marginal", "ahead of a frozen router, ± s.e."]
    return markdown([*header, "standard errors", "seeds", "depends on routing"], body)


def arm_lines(final: pd.DataFrame, task: str) -> list[str]:
    """The arms of a task at equal numbers of steps, by every way to serve them."""
    rows = final[final.task == task]
    words, *_ = MEASURES[rows.measure.iloc[0]]
    ways = [way for way in WAYS if rows[f"{way}, mean"].notna().any()]
    solved = rows.solved.notna().any()
    header = ["trained with", "rate, weight", "served by", "judged by", *(["solved"] if solved else [])]
    header += [way if way == "as trained" else f"by {way}" for way in ways]
    body = []
    for _, row in rows.iterrows():
        setting = f"{row.learning_rate:g}, {row.load_balancing:g}"
        cells = [label(row.arm) + ("*" if row.stopped else ""), setting, row.served, _mean(row, "")]
        if solved:
            cells.append(f"{100 * row.solved:.0f} % [{100 * row.solved_low:.0f}, {100 * row.solved_high:.0f}]")
        body.append([*cells, *("" if pd.isna(row[f"{way}, mean"]) else _mean(row, f"{way}, ") for way in ways)])
    title = f"{words}, mean ± s.e. over {int(rows.seeds.iloc[0])} seeds, {int(rows.num_steps.max())} steps"
    star = ["", "\\* training stopped at a loss that is not finite; judged at the parameters before"]
    return [f"{title}:", "", *markdown(header, body), *(star if rows.stopped.any() else [])]


def compute_lines(compute: pd.DataFrame, task: str) -> list[str]:
    """The arms of a task at equal compute, with what a step takes."""
    rows = compute[compute.task == task]
    words, *_ = MEASURES[rows.measure.iloc[0]]
    header = ["trained with", "experts evaluated", "steps", "judged by", "CPU ms per step"]
    body = [
        [label(row.arm), f"{row.evaluations:g}", str(int(row.num_steps)), _mean(row, ""), f"{row.milliseconds:.1f}"]
        for _, row in rows.iterrows()
    ]
    title = f"At equal numbers of expert evaluations ({words}; a step is one of all seeds, in processor time)"
    return [f"{title}:", "", *markdown(header, body)]


def _mean(row: pd.Series, name: str) -> str:
    _, _, _, unit = MEASURES[row.measure]
    return f"{number(row[f'{name}mean'], row.measure)} ± {number(row[f'{name}se'], row.measure)}{unit}"


def number(value: float, measure: str) -> str:
    """A value of a measure as it is printed, without its unit."""
    _, scale, digits, _ = MEASURES[measure]
    return f"{scale * value:.{digits}f}"


def markdown(header: list[str], body: list[list[str]]) -> list[str]:
    """:returns: the lines of a table."""
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
