"""
Fits that are killed in mid-flight and resumed, each a process of its own.

The suite makes two trials, one of each kind of fit. Twenty, each at another random moment:
``KILL_TRIALS=20 python -m pytest tests/inference/fit/test_kill.py -k killed``.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from inference.runs.checkpoint import load_checkpoint
from inference.runs.run_folder import RunFolder
from tests.inference.runs.test_checkpoint import same

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
NUM_STEPS = 90
KINDS = {
    "piecewise": "--num-epochs 30 --assignment skip --checkpoint-every 7",
    "digits": "--num-epochs 18 --batch-size 256 --num-layers 2 --baseline neural --dtype float64 --checkpoint-every 2",
}
TRIALS = int(os.environ.get("KILL_TRIALS", "2"))


def start(task: str, out: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # Nothing is there to go on with where a fit was killed before its first step.
    resume = ["--resume"] if RunFolder(out).holds_run() else []
    return subprocess.Popen(
        [sys.executable, "-m", "inference", "fit", task, *KINDS[task].split(), "--json", "--out", str(out), *resume],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    """Until the process has written the row of a step, or has ended."""
    metrics = RunFolder(out).seed(0).metrics
    while process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") > step:
            return
        time.sleep(0.001)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The runs that nobody interrupts."""
    folders = {}
    for task in list(KINDS)[:TRIALS]:
        folders[task] = tmp_path_factory.mktemp("whole") / task
        stdout, stderr = start(task, folders[task]).communicate(timeout=300)
        assert json.loads(stdout)["options"]["task"] == task, stderr
    return folders


def assert_same_run(out: Path, whole: Path) -> None:
    """Parameters, optimiser, generators and all else at the end, and every row of the tables."""
    one, other = RunFolder(out).seed(0), RunFolder(whole).seed(0)
    states = []
    for folder in (one, other):
        _, state = load_checkpoint(folder.checkpoint)
        states.append({key: value for key, value in state.items() if key not in ("wall", "cpu")})
    assert same(*states)
    for table, expected in ((one.metrics, other.metrics), (one.epochs, other.epochs)):
        first, second = (
            frame.drop(columns=[name for name in frame if "second" in name])
            for frame in map(pd.read_csv, (table, expected))
        )
        pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert len(pd.read_csv(one.metrics)) == NUM_STEPS


@pytest.mark.parametrize("trial", range(TRIALS))
def test_killed_and_resumed(trial: int, whole: dict[str, Path], tmp_path: Path) -> None:
    draw = random.Random(trial)
    task = list(KINDS)[trial % len(KINDS)]
    out = tmp_path / "run"
    process = start(task, out)
    wait_for_step(process, out, draw.randrange(NUM_STEPS - 15))
    time.sleep(draw.uniform(0, 0.02))
    process.kill()
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    process = start(task, out)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["options"]["task"] == task
    assert_same_run(out, whole[task])


def test_sigterm_leaves_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start("piecewise", out)
    wait_for_step(process, out, 9)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert stdout == ""
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("stopped by SIGTERM after step ")
    assert last.endswith(f"go on with: python -m inference fit piecewise --out {out} --resume")
    _, state = load_checkpoint(RunFolder(out).seed(0).checkpoint)
    rows = RunFolder(out).seed(0).metrics.read_bytes().count(b"\n") - 1
    # The very step at which the signal came.
    assert state["trainer"]["num_steps"] == rows == int(last.split("after step ")[1].split(";")[0])
