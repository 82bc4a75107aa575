"""Runs that an earlier version has left go on, or are refused by a message that says what to do."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from inference.cli import app
from inference.runs.checkpoint import FORMAT
from tests.inference.test_broken_input import refused

#: stopped after 4 of 6 steps by the version before the registry, when no more than one expert could be selected
EARLIER = Path(__file__).parent / "earlier"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(EARLIER, tmp_path / "run")
    return tmp_path / "run"


def test_an_earlier_run_goes_on_or_is_refused_in_clear_words(run: Path) -> None:
    result = CliRunner().invoke(app, ["fit", "piecewise", "--resume", "--out", str(run)])
    if f"format {FORMAT}".encode() in (run / "seed_0" / "fit.checkpoint").read_bytes()[:60]:
        assert result.exit_code == 0, result.output
        assert list(pd.read_csv(run / "seed_0" / "metrics.csv").step) == [1, 2, 3, 4, 5, 6]
    else:
        assert result.exit_code == 2
        assert "resume it with the version that wrote it, or start anew with --overwrite" in result.stderr
    assert "Traceback" not in result.output


def test_an_earlier_format_is_refused(run: Path) -> None:
    file = run / "seed_0" / "fit.checkpoint"
    file.write_bytes(file.read_bytes().replace(f"format {FORMAT}".encode(), f"format {FORMAT - 1}".encode(), 1))
    before = file.read_bytes()
    message = refused("fit", "piecewise", "--resume", "--out", str(run))
    assert message.endswith("resume it with the version that wrote it, or start anew with --overwrite")
    assert file.read_bytes() == before


def test_an_earlier_run_has_one_expert_per_datapoint(run: Path) -> None:
    message = refused("fit", "piecewise", "--resume", "--num-selected", "2", "--out", str(run))
    assert "num_selected was None and is 2 now" in message
