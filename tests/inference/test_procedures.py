"""One spelling of every name, in options and in what is written, and one label in what people read."""

import csv
import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from inference.cli import app
from inference.gradients.alternatives import alternatives
from inference.gradients.estimators import estimators
from inference.gradients.expected_gradients import METHODS
from inference.names import resolve, spelling
from inference.procedures import LABELS, PROCEDURES, label
from inference.show.run_summary import PROCEDURES as DESCRIBED
from inference.study.arms import ARMS, CORE
from inference.study.cache import FORMAT, Cache, Record
from inference.study.grids import GRIDS
from inference.study.settings import ToyRun
from inference.study.statistics import CLAIMS
from inference.training.objective import Assignment


def test_every_name_of_every_command_stands_in_one_place() -> None:
    of_gradients = {estimator.name for estimator in (*estimators(), *alternatives())} | set(METHODS)
    assert set(ARMS) | of_gradients == set(LABELS)
    assert set(Assignment) == set(PROCEDURES) == set(DESCRIBED)
    assert set(PROCEDURES) <= set(ARMS) & of_gradients
    assert all(assignment.distribution is PROCEDURES[assignment] for assignment in Assignment)
    assert all(arm.label == label(name) for name, arm in ARMS.items())


def test_names_are_as_one_types_them() -> None:
    for name in LABELS:
        assert name == spelling(name)
        assert name.isascii()
        # The label is understood as well.
        assert resolve("name", label(name), LABELS) == name
    used = {name for claim in CLAIMS for name in (claim.arm, claim.other)} | set(CORE)
    assert used | {name for grid in GRIDS.values() for name in grid.arms} <= set(ARMS)


def test_json_and_csv_of_the_study_have_names_and_its_tables_labels(tmp_path: Path) -> None:
    small = ["--num-seeds", "2", "--num-steps", "2", "--jobs", "1", "--out", str(tmp_path)]
    arms = ["--arm", "Gumbel-Matching, unweighted", "--arm", "gumbel-matching", "--arm", "σ-MoE"]
    result = CliRunner().invoke(app, ["study", *small, *arms])
    assert result.exit_code == 0, result.output
    for text in (result.stdout, (tmp_path / "report.md").read_text(encoding="utf-8")):
        assert "σ-MoE" in text
        assert "gumbel-matching" not in text
    result = CliRunner().invoke(app, ["study", *small, *arms, "--json", "--overwrite"])
    tables = json.loads(result.stdout)
    names = ["gumbel-matching", "gumbel-matching-unweighted", "sigma-moe"]
    assert sorted({row["arm"] for row in tables["arms"]}) == names
    assert sorted(pd.read_csv(tmp_path / "settings.csv").arm) == names
    assert {(row["arm"], row["minus"]) for row in tables["contrasts"]} == {tuple(names[:2])}


@pytest.mark.parametrize(("command", "key"), [("likelihood", "procedures"), ("gradients", "expected_gradients")])
def test_other_commands_have_the_same_names(command: str, key: str, tmp_path: Path) -> None:
    options = ["--num-draws", "100"] if command == "likelihood" else ["--enumeration"]
    arguments = [command, *options, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)[key]
    assert set(content if command == "likelihood" else {row["method"] for row in content}) <= set(LABELS)
    shown = CliRunner().invoke(app, [*arguments, "--overwrite"]).stdout
    assert not any(name in shown for name in LABELS if name != label(name).lower())


@pytest.mark.parametrize(("arm", "earlier"), [("gumbel-matching", "Gumbel-Matching"), ("sigma-moe", "σ-MoE")])
def test_finished_runs_of_earlier_versions_are_read(arm: str, earlier: str, tmp_path: Path) -> None:
    """Their files were named by the label of the arm."""
    run = ToyRun(arm, 0.1, 0.0)
    settings = {**run.settings(), "arm": earlier}
    text = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
    file = tmp_path / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"
    record = Record(settings, {"nll": [1.0], "error": [0.5]}, seconds=2.0)
    file.write_text(json.dumps(vars(record)))
    assert Cache(tmp_path).load(run) == record


@pytest.mark.parametrize("table", ["arms", "contrasts", "settings"])
def test_the_committed_study_has_the_names_too(table: str) -> None:
    file = Path(__file__).parents[2] / "notebooks" / "data" / f"study_{table}.csv"
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row[column] for row in rows for column in ("arm", "minus") if column in row} <= set(ARMS)
