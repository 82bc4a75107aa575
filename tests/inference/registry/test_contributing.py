"""The examples of CONTRIBUTING.md, as they stand there: files that the kit accepts and the command line knows."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from inference.registry.builtin import REGISTRY
from inference.registry.plugins import load
from prob_moe.testing import check_assignment_distribution, check_baseline, check_rule
from tests.inference.registry.test_plugins import _nothing_loaded, done  # noqa: F401

TEXT = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"### An? (\w+)\n\n```python\n(.*?)```", TEXT, flags=re.DOTALL))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    written = {}
    for kind, text in EXAMPLES.items():
        file = tmp_path / f"my_{kind}.py"
        file.write_text(text, encoding="utf-8")
        written[kind] = str(file)
    return written


def test_there_is_one_of_every_kind() -> None:
    assert list(EXAMPLES) == ["distribution", "rule", "baseline", "estimator", "task"]
    assert TEXT.count("```python") == len(EXAMPLES)


WITHOUT_PROGRAMS = """
import runpy, sys
sys.modules["inference"] = None
for file in sys.argv[1:]:
    try:
        print(file, "register" in runpy.run_path(file))
    except ImportError as error:
        print(file, error.name)
"""


def test_their_classes_need_the_wheel_alone(files: dict[str, str]) -> None:
    """Which has no programs. A task is for them."""
    command = [sys.executable, "-c", WITHOUT_PROGRAMS, *files.values()]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    said = dict(line.split(" ") for line in printed)
    assert said.pop(files["task"]).startswith("inference")
    assert set(said.values()) == {"True"}


def test_the_kit_accepts_them(files: dict[str, str]) -> None:
    for kind in ("distribution", "rule", "baseline"):
        load(files[kind])
    assert "weights are unbiased" in check_assignment_distribution(REGISTRY.procedures["defensive"].make).passed
    check_rule(REGISTRY.rules["ungated"].make)
    assert check_baseline(REGISTRY.baselines["guess"].build(0)) == ["router", "balanced"]


def test_fit_trains_the_task_with_the_others(files: dict[str, str], tmp_path: Path) -> None:
    given = [part for kind in EXAMPLES for part in ("--plugin", files[kind])]
    names = ["--assignment", "defensive", "--baseline", "guess", "--estimator", "plain"]
    done("fit", "stairs", *given, *names, "--num-epochs", "3", "--out", str(tmp_path / "run"))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["plugins"] == [files[kind] for kind in ("task", "distribution", "estimator", "baseline")]
    assert len(pd.read_csv(tmp_path / "run" / "fit_stairs_curve.csv")) == 3


def test_study_trains_the_rule(files: dict[str, str], tmp_path: Path) -> None:
    small = ["study", "--num-seeds", "2", "--num-steps", "2", "--jobs", "1", "--out", str(tmp_path / "study")]
    done(*small, "--plugin", files["rule"], "--arm", "ungated")
