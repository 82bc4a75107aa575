"""
Fits that are killed in mid-flight and resumed, each a process of its own.

The suite makes a few trials; ``KILL_TRIALS=20 python -m pytest tests/inference/test_kill.py`` makes twenty of the first
kind, each at another random moment.
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

from inference.checkpoint import load_checkpoint
from inference.run_folder import RunFolder
from tests.inference.test_checkpoint import same

ROOT = Path(__file__).parents[2]
NUM_STEPS = 90
COMMAND = (sys.executable, "-m", "inference", "fit", "piecewise", "--num-epochs", "30", "--json")
COMMAND = (*COMMAND, "--assignment", "skip", "--checkpoint-every", "7")
TRIALS = int(os.environ.get("KILL_TRIALS", "2"))


def start(out: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "--out", str(out), "--resume"],
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
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody interrupts."""
    out = tmp_path_factory.mktemp("whole") / "run"
    stdout, stderr = start(out).communicate(timeout=300)
    assert json.loads(stdout)["options"]["task"] == "piecewise", stderr
    return out


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
def test_killed_and_resumed(trial: int, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(trial)
    out = tmp_path / "run"
    process = start(out)
    wait_for_step(process, out, draw.randrange(NUM_STEPS - 15))
    time.sleep(draw.uniform(0, 0.02))
    process.kill()
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    process = start(out)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["options"]["num_epochs"] == 30
    assert_same_run(out, whole)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(signum: int, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(out)
    wait_for_step(process, out, 9)
    process.send_signal(signum)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 128 + signum
    assert stdout == ""
    last = stderr.strip().splitlines()[-1]
    assert last.startswith(f"stopped by {signal.Signals(signum).name} after step ")
    assert last.endswith(f"go on with: python -m inference fit piecewise --out {out} --resume")
    _, state = load_checkpoint(RunFolder(out).seed(0).checkpoint)
    rows = RunFolder(out).seed(0).metrics.read_bytes().count(b"\n") - 1
    # Not a multiple of seven, but the very step at which the signal came.
    assert state["trainer"]["num_steps"] == rows == int(last.split("after step ")[1].split(";")[0])
    if signum == signal.SIGTERM:
        process = start(out)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        assert_same_run(out, whole)
