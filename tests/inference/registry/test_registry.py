"""One spelling of every name, in options and in what is written, and one label in what people read."""

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from inference.cli import app
from inference.gradients.alternatives import alternatives
from inference.gradients.estimators import estimators
from inference.gradients.expected_gradients import METHODS
from inference.registry import BaselineEntry, ProcedureEntry, RuleEntry, TaskEntry
from inference.registry.builtin import REGISTRY, label
from inference.registry.names import resolve, spelling
from inference.study.arms import all_arms, core
from inference.study.grids import GRIDS
from inference.study.statistics import CLAIMS
from prob_moe.distributions import CapacitySkip
from prob_moe.estimators import Baseline
from prob_moe.rules import Switch


def names_in_use() -> set[str]:
    of_gradients = {estimator.name for estimator in (*estimators(), *alternatives())}
    return set(all_arms()) | of_gradients | set(METHODS)


def test_every_procedure_and_rule_is_known_to_every_command() -> None:
    of_gradients = {estimator.name for estimator in (*estimators(), *alternatives())}
    assert set(REGISTRY.procedures) <= set(all_arms()) & of_gradients
    for name, entry in REGISTRY.rules.items():
        assert (name in all_arms(), name in of_gradients) == tuple(
            command in entry.commands for command in ("study", "gradients")
        )
        assert (name in REGISTRY.fitted) == ("fit" in entry.commands)
    assert set(REGISTRY.procedures) < set(REGISTRY.fitted)


def test_labels_of_arms_and_estimators_follow_from_their_names() -> None:
    for shown in (*all_arms().values(), *estimators(), *alternatives()):
        assert shown.label == label(shown.name)


def test_every_procedure_and_estimator_has_its_words() -> None:
    assert all(entry.words for entry in (*REGISTRY.procedures.values(), *REGISTRY.estimators.values()))


def test_what_the_entries_say_of_themselves_is_so() -> None:
    logits = torch.zeros(4, 3)
    for name, entry in REGISTRY.procedures.items():
        plain = entry.make(logits, capacity=2)
        value = plain.sample()
        assert entry.weighted == (name != "independent")
        if entry.has_law:
            plain.log_prob(value)
        else:
            with pytest.raises(NotImplementedError):
                plain.log_prob(value)
        if entry.takes_several:
            assert entry.make(logits, capacity=3, num_selected=2).event_shape == (2, 4)
        else:
            with pytest.raises((TypeError, NotImplementedError, ValueError)):
                entry.make(logits, capacity=3, num_selected=2)
    for entry in REGISTRY.baselines.values():
        baseline = entry.build(5)
        assert isinstance(baseline, torch.nn.Module if entry.network else Baseline)
        assert entry.network or entry.needs_particles == baseline.needs_particles


def test_names_are_as_one_types_them() -> None:
    names = names_in_use()
    for name in names:
        assert name == spelling(name)
        assert name.isascii()
        # The label is understood as well.
        assert resolve("name", label(name), names) == name
    used = {name for claim in CLAIMS for name in (claim.arm, claim.other)} | set(core())
    assert used | {run.arm for grid in GRIDS.values() for run in grid.runs()} <= set(all_arms())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (ProcedureEntry("Skip", CapacitySkip), "the name 'skip' of a procedure is taken by a built-in one"),
        (ProcedureEntry("switch", Switch), "procedure 'switch' must be of type AssignmentDistribution, got Switch"),
        (RuleEntry("mine", CapacitySkip), "rule 'mine' must be of type RoutingRule, got CapacitySkip"),
        (BaselineEntry("mine", 3), "baseline 'mine' must be of type Baseline, got 3"),
        (BaselineEntry("mine", CapacitySkip), "baseline 'mine' must be of type Baseline, got CapacitySkip"),
        (TaskEntry("", CapacitySkip), "the label of a task must be a text, got ''"),
        (CapacitySkip, "the registry takes ProcedureEntry, RuleEntry"),
    ],
)
def test_bad_entries(entry: Any, message: str) -> None:
    before = REGISTRY.state()
    with pytest.raises(ValueError, match=message):
        REGISTRY.add(entry)
    assert REGISTRY.state() == before


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
    assert sorted(set(pd.read_csv(tmp_path / "settings.csv").arm)) == names
    assert {(row["arm"], row["minus"]) for row in tables["contrasts"]} == {tuple(names[:2])}


@pytest.mark.parametrize(("command", "key"), [("likelihood", "procedures"), ("gradients", "expected_gradients")])
def test_other_commands_have_the_same_names(command: str, key: str, tmp_path: Path) -> None:
    options = ["--num-draws", "100"] if command == "likelihood" else ["--enumeration"]
    arguments = [command, *options, "--out", str(tmp_path)]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)[key]
    assert set(content if command == "likelihood" else {row["method"] for row in content}) <= names_in_use()
    shown = CliRunner().invoke(app, [*arguments, "--overwrite"]).stdout
    assert not any(name in shown for name in names_in_use() if name != label(name).lower())


@pytest.mark.parametrize("table", ["arms", "contrasts", "settings"])
def test_the_committed_study_has_the_names_too(table: str) -> None:
    file = Path(__file__).parents[3] / "notebooks" / "data" / f"study_{table}.csv"
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row[column] for row in rows for column in ("arm", "minus") if column in row} <= set(all_arms())
