"""Tables and sentences of the pages about finished studies say what the files of their results say."""

import re
from pathlib import Path

import pandas as pd
import pytest

from inference.registry.builtin import label

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
DIGITS = {"robust": ("{:.3f} ± {:.3f}", 1), "error": ("{:.1f} ± {:.1f} %", 100)}


def page(name: str) -> str:
    """With the plain sign for minus."""
    return (NOTEBOOKS / name).read_text(encoding="utf-8").replace("−", "-")


def sentences(name: str) -> str:
    """Without line breaks."""
    return " ".join(page(name).split())


def data(name: str) -> pd.DataFrame:
    return pd.read_csv(NOTEBOOKS / "data" / name)


def rows(text: str, first_cell: str) -> list[list[str]]:
    """The body of the first table whose head begins so."""
    lines = text[text.index(f"| {first_cell} |") :].splitlines()
    body = lines[2 : next(place for place, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def spread(row: pd.Series, measure: str) -> str:
    form, scale = DIGITS[measure]
    return form.format(scale * row[measure], scale * row[f"{measure}_se"])


def served(table: pd.DataFrame, arm: str, way: str, measure: str) -> str:
    """Mean and error of an arm at its best setting, "" where it is not served so."""
    found = table[(table.arm.map(label) == arm) & (table.served == way) & (table["view"] == "best setting")]
    return spread(found.iloc[0], measure) if len(found) else ""


def test_pieces() -> None:
    table = data("pieces_settings.csv")
    found = rows(page("results/objectives.md"), "trained with")
    assert len(found) == table.arm.nunique()
    for name, _, *cells in found:
        own = table[(table.arm.map(label) == name) & (table.load_balancing == 0)]
        for pieces, cell in zip((2, 4, 8), cells, strict=True):
            solved = own[own.task == f"{pieces} pieces of a line"].sort_values("learning_rate").solved
            assert cell == " / ".join(f"{100 * share:.0f}" for share in solved) + " %"


@pytest.mark.parametrize("task", ["diamonds", "flights"])
def test_tables(task: str) -> None:
    table = data("tables_serving.csv").query("task == @task")
    _, _, text = page("results/tables.md").partition(f"\n## {task}")
    found = rows(text, "trained with")
    assert len(found) == table.arm.nunique()
    for name, *cells in found:
        assert cells == [served(table, name, way, "robust") for way in ("1", "2", "all")]


def test_digits_in_regimes() -> None:
    table = data("regimes_serving.csv").query("task == 'digits in 8 regimes'")
    *learnt, (_, fixed, *_) = rows(page("results/digits.md"), "trained with")
    for name, *cells in learnt:
        arm = "independent" if name == "independent, router objective" else name
        assert cells == [served(table, arm, way, "error") for way in ("1", "2", "all")]
    lines = [served(table, name, "1", "error").removesuffix(" %") for name in ("oracle", "frozen router", "one expert")]
    assert fixed == " / ".join(lines) + " %"


def test_the_first_study() -> None:
    table = data("study_arms.csv").query("view == 'best setting'")
    found = rows(page("results/study.md"), "trained with")
    assert {name for name, *_ in found} == set(table.arm.map(label))
    for name, _, *cells in found:
        for task, measure, digits, cell in zip(
            ("lines, break at 0.5", "lines, break at 0.3", "digits"), ("solved", "solved", "error"), (0, 0, 1), cells
        ):
            row = table[(table.arm.map(label) == name) & (table.task == task)].iloc[0]
            mean, low, high = (f"{100 * row[measure + end]:.{digits}f}" for end in ("", "_low", "_high"))
            assert cell == f"{mean} % [{low}, {high}]"


def test_two_experts_in_the_language_model() -> None:
    table = data("language_experts.csv")
    assert (table.seeds == 8).all()
    for name, _, bits, difference in rows(page("results/language.md"), "`NAME`"):
        row = table[table.run == f"results/language/hidden/{name.strip('`')}"].iloc[0]
        assert bits == f"{row['mean']:.3f} [{row.low:.3f}, {row.high:.3f}]"
        ends = [row[f"first_minus_this_{end}"] for end in ("mean", "low", "high")]
        assert difference == ("" if pd.isna(ends[0]) else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*ends))


def test_readme_of_objectives() -> None:
    table = data("pieces_settings.csv")
    several = table[table.task.isin(["4 pieces of a line", "8 pieces of a line"]) & (table.load_balancing == 0)]
    ends = {
        arm: [f"{100 * share:.0f}" for share in (rows.solved.min(), rows.solved.max())]
        for arm, rows in several.groupby("arm")
    }
    said = re.search(r"dependent rounding (\d+) to (\d+) % of the seeds .* objective (\d+) to (\d+) %\.", readme())
    assert said is not None
    assert [*said.groups()] == ends["dependent-rounding-mixture-bound"] + ends["exact-gradient"]


def test_readme_of_tables() -> None:
    table = data("tables_serving.csv").query("view == 'best setting'")
    behind = [
        row.behind
        for arm, way in (("switch", "1"), ("independent", "2"), ("independent-mixture-bound", "2"))
        for _, row in table[(table.arm == arm) & (table.served == way)].iterrows()
    ]
    assert len(behind) == 6
    said = re.search(r"by conditional Poisson by (\S+) to (\S+) nats a row", readme())
    assert said is not None
    assert said.groups() == (f"{min(behind):.2f}", f"{max(behind):.2f}")


def test_readme_of_speed() -> None:
    found = {(what, peer): ratio for what, _, _, peer, _, ratio, _ in rows(page("results/speed.md"), "what")}
    said = re.search(
        r"exact assignment (\d+) times as fast as POT at 4096×64 .* costs (\S+) to (\S+) dense ones", readme()
    )
    assert said is not None
    faster, least, most = said.groups()
    assert faster == f"{float(found['assignment 4096×64', 'POT, network simplex'].removesuffix(' x')):.0f}"
    steps = [
        float(ratio.removesuffix("×"))
        for (what, peer), ratio in found.items()
        if what.startswith("step, ") and peer.startswith("dense") and "bfloat16" not in what and "top-2" not in what
    ]
    assert len(steps) == 6
    assert (least, most) == (f"{min(steps):.1f}", f"{max(steps):.1f}")


def readme() -> str:
    return sentences("../README.md")


def test_sentences_about_tables() -> None:
    table = data("tables_serving.csv").query("view == 'best setting'").set_index(["task", "arm", "served"])
    text = sentences("results/tables.md")
    for arm, way in (("switch", "1"), ("independent", "2"), ("independent-mixture-bound", "2")):
        for task in ("diamonds", "flights"):
            row = table.loc[task, arm, way]
            assert f"{row.behind:.3f} ± {row.behind_se:.3f}" in text
    for task in ("diamonds", "flights"):
        row = table.loc[task, "dependent-rounding-mixture-bound", "2"]
        assert f"on `{task}` ({row.behind:.3f} ± {row.behind_se:.3f})" in text
