"""The command end to end: with a stand-in for training, and once, small, with training."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from inference.cli import app
from inference.routing_study import command as module
from inference.routing_study import gate
from inference.routing_study.costs import estimate, told
from inference.routing_study.task import Task
from inference.routing_study.tasks import TASKS, reduced
from inference.study.cache import Cache
from inference.study.settings import Run
from tests.inference.registry.test_plugins import RULE
from tests.inference.routing_study.stand_in import ARMS, task


def done(*arguments: str) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["study", "routing", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout, " ".join(result.stderr.split())


@pytest.mark.usefixtures("trained")
def test_it_says_the_cost_and_writes_table_and_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TASKS", (task(),))
    out, cost = done("--jobs", "1", "--out", str(tmp_path))
    assert "4 pieces of a line: 69 runs, about 0.1 minutes of processor time" in cost
    assert "### 4 pieces of a line" in out
    assert "| Switch | 0.03, 1 | 2 |" in out
    assert {path.name for path in tmp_path.iterdir()} == {"routing.csv", "routing.md", "runs"}
    table = pd.read_csv(tmp_path / "routing.csv")
    assert set(table.arm) == set(ARMS)
    again = CliRunner().invoke(app, ["study", "routing", "--out", str(tmp_path)])
    assert (again.exit_code, "give --overwrite" in again.output) == (2, True)


@pytest.mark.usefixtures("trained")
def test_machines_get_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TASKS", (task(),))
    out, _ = done("--jobs", "1", "--arm", "switch", "--json", "--out", str(tmp_path))
    tables = json.loads(out)
    assert tables.keys() == {"gates", "final", "compute"}
    assert {row["arm"] for row in tables["final"]} == {"oracle", "frozen-router", "exact-marginal", "switch"}
    assert [gate["passed"] for gate in tables["gates"]] == [True]


def test_the_cost_is_told_without_a_run(tmp_path: Path, trained: list[Run]) -> None:
    out = tmp_path / "new"
    _, cost = done("--cost", "--reduced", "--jobs", "2", "--out", str(out))
    assert "on 2 processes" in cost
    assert not trained
    assert not out.exists()


def test_the_cost_is_that_of_the_runs(tmp_path: Path, trained: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every one of the stand-in says that it took two seconds, at whatever number of steps."""
    cache = Cache(tmp_path / "runs")
    before = estimate(task(), ARMS, cache)
    monkeypatch.setattr(module, "TASKS", (task(),))
    done("--jobs", "1", "--out", str(tmp_path))
    assert before.runs == len(trained)
    after = estimate(task(), ARMS, cache)
    assert after.runs == before.runs
    assert 0 < after.done < after.runs  # those of the tuning, whose settings are known
    assert after.minutes == pytest.approx(2 / 60 * (after.runs - after.done), rel=0.3)


def test_the_reduced_study_takes_minutes_and_the_whole_one_less_than_three_hours() -> None:
    def minutes(tasks: tuple[Task, ...]) -> float:
        return sum(estimate(each, each.chosen_arms(), Cache(Path("nowhere"))).minutes for each in tasks)

    assert minutes(reduced()) < 20  # on two cores, 10
    assert minutes(TASKS) < 180
    assert told([estimate(task(), ARMS, Cache(Path("nowhere")))], 1)[-1].endswith("of processor time")


@pytest.mark.usefixtures("_nothing_loaded")
def test_a_stranger_s_rule_is_trained_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really trained, a few steps, behind a gate that lets everything pass."""
    monkeypatch.setattr(gate, "ENOUGH", -1e9)
    arms = ("oracle", "frozen-router", "exact-marginal", "switch")
    small = task(arms=arms, num_seeds=2, num_tuning_seeds=2, num_gate_seeds=2, num_steps=4)
    monkeypatch.setattr(module, "TASKS", (small,))
    done("--jobs", "1", "--plugin", RULE, "--out", str(tmp_path))
    table = pd.read_csv(tmp_path / "routing.csv")
    final = table[(table.stage == "final") & table.chosen]
    assert set(final.arm) == {*arms, "root-gate"}
    assert set(final.groupby("arm").size()) == {2}
    assert final.robust.between(-2, 10).all()
    assert final[final.arm == "oracle"].solved.isin([0, 1]).all()
    result = CliRunner().invoke(app, ["claims", str(tmp_path / "routing.csv"), "--plugin", RULE])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-seeds", "0"], "num_seeds must be a positive int, got 0"),
        (["--num-steps", "-3"], "num_steps must be a positive int, got -3"),
        (["--task", "4 piece of a line"], "did you mean 4 pieces of a line?"),
        (["--arm", "swich"], "did you mean switch?"),
    ],
)
def test_bad_options_give_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["study", "routing", *arguments, "--out", str(tmp_path / "new")])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "new").exists()
