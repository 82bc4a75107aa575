"""The command ``gradients`` end to end, small."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from inference.cli import app
from inference.gradients.alternatives import alternatives
from inference.gradients.comparison import PARTS
from inference.gradients.estimators import estimators
from inference.gradients.tables import base_tables, settings_table
from inference.registry import Objective

TINY = ["--n", "4", "--k", "2", "--capacity-factor", "1,2", "--sharpness", "1", "--imbalance", "1,3"]


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["gradients", *arguments])
    return result.exit_code, result.output


@pytest.mark.slow
def test_every_row_of_the_tables_is_in_the_csv_and_names_its_objective(tmp_path: Path) -> None:
    code, output = run(*TINY, "--num-samples", "100", "--out", str(tmp_path))
    assert code == 0, output
    frame = pd.read_csv(tmp_path / "gradients.csv", keep_default_na=False, na_values=[""])
    frame.baseline = frame.baseline.fillna("")
    count = len(estimators()) + len(alternatives())
    assert len(frame) == 3 * count * len(PARTS)
    assert set(frame.objective) == set(Objective)
    # Rows without numbers are headings.
    assert sum(bool(cell) for table in base_tables(frame) for cell in table.columns[1].cells) == count
    assert settings_table(frame).row_count == 3
    assert (frame.relative_variance[frame.estimator == "independent"] == 1).all()
    for picture in ("gradients_variance.png", "gradients_bias.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    assert "written to" in output


def test_json_is_all_that_is_printed(tmp_path: Path) -> None:
    code, output = run("--enumeration", "--json", "--out", str(tmp_path))
    assert code == 0, output
    errors = pd.DataFrame(json.loads(output)["expected_gradients"])
    pd.testing.assert_frame_equal(errors, pd.read_csv(tmp_path / "expected_gradients.csv"), check_dtype=False)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--n", "4,many", "--n must be a list of int such as 1,2,4; got '4,many'"),
        ("--sharpness", "", "--sharpness must be a list of float"),
        ("--k", "1", "k must be at least 2, got 1"),
        ("--n", "0", "n must be at least 1, got 0"),
        ("--capacity-factor", "0.5", "balanced procedures need a factor of at least 1"),
        ("--capacity-factor", "nan", "capacity_factor must be positive and finite"),
        ("--sharpness", "-1", "sharpness must be a finite number >= 0, got -1.0"),
        ("--imbalance", "inf", "imbalance must be a finite number >= 0, got inf"),
        ("--num-samples", "50", "num_samples must be at least 100"),
    ],
)
def test_bad_options_give_one_line_and_exit_code_2(tmp_path: Path, option: str, value: str, message: str) -> None:
    code, output = run("--quick", "--out", str(tmp_path), option, value)
    assert code == 2
    assert message in " ".join(output.split())
    assert "Traceback" not in output
