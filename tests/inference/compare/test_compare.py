"""The command ``compare``: what it pairs, what it prints and writes, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from inference.cli import app
from inference.intervals import bca_interval
from tests.inference.test_broken_input import refused

FIT = ["fit", "piecewise", "--num-epochs", "2", "--assignment", "skip"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for name, options in (("two", ["--num-seeds", "3"]), ("three", ["--num-seeds", "3", "--seed", "1"])):
        folders[name] = tmp_path_factory.mktemp("compared") / name
        rate = "0.3" if name == "three" else "0.1"
        result = CliRunner().invoke(app, [*FIT, *options, "--learning-rate", rate, "--out", str(folders[name])])
        assert result.exit_code == 0, result.output
    return folders


def rows_of(*arguments: str) -> list[dict]:
    result = CliRunner().invoke(app, ["compare", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    rows: list[dict] = json.loads(result.stdout)
    return rows


@pytest.mark.parametrize("part", ["validation", "test"])
def test_differences_are_paired_by_seed(runs: dict[str, Path], part: str, tmp_path: Path) -> None:
    metric = "NLL, served (nats)"
    paths, out = [str(runs["two"]), str(runs["three"])], tmp_path / "table.csv"
    first, second = rows_of(*paths, "--metric", metric, "--part", part, "--out", str(out))
    values = []
    for folder in runs.values():
        if part == "test":
            table = pd.read_csv(folder / "fit_piecewise.csv", index_col="seed")
        else:
            curve = pd.read_csv(folder / "fit_piecewise_curve.csv", index_col="seed")
            table = curve[curve.epoch == 2]
        values.append(table[metric])
    for row, of_run in zip((first, second), values):
        assert (row["seeds"], row["part"]) == (3, part)
        assert (row["low"], row["high"]) == pytest.approx(bca_interval(of_run.to_numpy()))
        assert row["mean"] == pytest.approx(of_run.mean())
    difference = (values[0] - values[1]).loc[[1, 2]]
    assert second["first_minus_this_seeds"] == 2
    assert second["first_minus_this_mean"] == pytest.approx(difference.mean())
    # Not the difference of the means, which are of other seeds.
    assert second["first_minus_this_mean"] != pytest.approx(first["mean"] - second["mean"])
    assert first["first_minus_this_mean"] is None
    assert np.allclose(pd.read_csv(out)["mean"], [first["mean"], second["mean"]])


def test_the_table_for_people(runs: dict[str, Path]) -> None:
    result = CliRunner().invoke(app, ["compare", *map(str, runs.values())])
    assert result.exit_code == 0, result.output
    assert "RMSE, served, validation part" in result.stdout
    assert "[95 % intervals over seeds: BCa]" in result.stdout


def test_seeds_that_are_not_done_are_left_out(runs: dict[str, Path], tmp_path: Path) -> None:
    unfinished = tmp_path / "run"
    shutil.copytree(runs["two"], unfinished)
    epochs = unfinished / "seed_2" / "epochs.csv"
    epochs.write_text("".join(epochs.read_text().splitlines(keepends=True)[:2]))
    first, second = rows_of(str(runs["two"]), str(unfinished))
    assert (first["seeds"], second["seeds"]) == (3, 2)
    assert second["first_minus_this_mean"] == 0
    for seed in (0, 1):
        shutil.rmtree(unfinished / f"seed_{seed}")
    assert f"no seed of {unfinished} is done" in refused("compare", str(runs["two"]), str(unfinished))
    (unfinished / "fit_piecewise.csv").unlink()
    assert "is done: go on" in refused("compare", str(runs["two"]), str(unfinished), "--part", "test")
    epochs.write_text("nonsense\n")
    assert "is damaged" in refused("compare", str(unfinished), str(runs["two"]))


def test_bad_input(runs: dict[str, Path], tmp_path: Path) -> None:
    two, three = map(str, runs.values())
    assert "give the folders of two runs or more" in refused("compare", two)
    assert "there is no folder" in refused("compare", two, str(tmp_path / "nowhere"))
    assert "has no metric 'beauty'; known are RMSE" in refused("compare", two, three, "--metric", "beauty")
    out = tmp_path / "table.csv"
    out.write_text("precious")
    assert "is there already: give --overwrite" in refused("compare", two, three, "--out", str(out))
    assert out.read_text() == "precious"
    digits = tmp_path / "digits"
    result = CliRunner().invoke(
        app, ["fit", "digits", "--num-epochs", "1", "--assignment", "skip", "--out", str(digits)]
    )
    assert result.exit_code == 0, result.output
    assert "runs must be of one task" in refused("compare", two, str(digits))
    later = tmp_path / "later"
    result = CliRunner().invoke(app, [*FIT, "--seed", "7", "--out", str(later)])
    assert result.exit_code == 0, result.output
    assert "have no seed in common: nothing to pair" in refused("compare", two, str(later))
