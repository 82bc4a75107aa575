"""Runs that an earlier version has left are refused by a message that says what to do."""

import shutil
from pathlib import Path

import pytest

from inference.runs.checkpoint import FORMAT
from tests.inference.test_broken_input import refused

#: stopped after 4 of 6 steps by the version before the registry, when no more than one expert could be selected
EARLIER = Path(__file__).parent / "earlier"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    shutil.copytree(EARLIER, tmp_path / "run")
    return tmp_path / "run"


def test_an_earlier_format_is_refused_in_clear_words(run: Path) -> None:
    """Format 2 was a pickle, which some releases of torch can be made to run code by, whatever they are asked for."""
    file = run / "seed_0" / "fit.checkpoint"
    before = file.read_bytes()
    message = refused("fit", "piecewise", "--resume", "--out", str(run))
    assert f"fit.checkpoint has format version 2, and this program reads {FORMAT}: " in message
    assert message.endswith("resume it with the version that wrote it, or start anew with --overwrite")
    assert file.read_bytes() == before


def test_an_earlier_run_has_one_expert_per_datapoint(run: Path) -> None:
    message = refused("fit", "piecewise", "--resume", "--num-selected", "2", "--out", str(run))
    assert "num_selected was None and is 2 now" in message
