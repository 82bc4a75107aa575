"""
Fits that torchrun starts on several processes, some of which are killed.

The suite makes three trials, one of each kind. Ten, each at another random moment:
``KILL_TRIALS=10 python -m pytest -n 0 -m slow tests/inference/fit/test_processes.py -k killed``.
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from inference.runs.checkpoint import load_checkpoint
from inference.runs.run_folder import RunFolder
from tests.inference.runs.test_checkpoint import same

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of torchrun in /proc"),
]

ROOT = Path(__file__).parents[3]
#: 50 steps
OPTIONS = "--num-groups 4 --assignment skip --num-epochs 5 --dtype float64 --checkpoint-every 3"
NUM_STEPS = 50
TRIALS = int(os.environ.get("KILL_TRIALS", "3"))
#: processes that a run has, who of them is killed, and processes that go on with it
KINDS = [(2, "one", 2), (2, "all", 1), (1, "all", 2), (2, "one", 1), (2, "all", 2)]
#: seconds
TIMEOUT = 60


def start(
    processes: int, out: Path, *, options: str = OPTIONS, restarts: int = 0, timeout: int = TIMEOUT
) -> subprocess.Popen:
    options = "--resume" if RunFolder(out).holds_run() else options
    launcher = f"-m torch.distributed.run --standalone --max-restarts {restarts} --nproc-per-node {processes}"
    command = f"-m inference fit digits {options} --out {out} --json --timeout {timeout}"
    return run(f"{launcher if processes > 1 else ''} {command}")


def run(command: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command.split()],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen) -> str:
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    return stdout


def workers(process: subprocess.Popen) -> list[int]:
    """:returns: the processes that torchrun has started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    metrics = RunFolder(out).seed(0).metrics
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > step):
        time.sleep(0.001)
    assert process.poll() is None, process.communicate()[1]


def numbers(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [number for name in sorted(value, key=str) for number in numbers(value[name])]
    if isinstance(value, list | tuple):
        return [number for inner in value for number in numbers(inner)]
    return [torch.as_tensor(value)] if isinstance(value, int | float | Tensor) else []


def assert_same_run(out: Path, other: Path, *, exactly: bool) -> None:
    """Parameters, optimiser, baselines, order of the data; the loads of every look, which the draws make; losses."""
    states = []
    for folder in (out, other):
        _, state = load_checkpoint(RunFolder(folder).seed(0).checkpoint)
        states.append({name: value for name, value in state.items() if name not in ("wall", "cpu")})
    if exactly:
        assert same(*states)
    for one, two in zip(*map(numbers, states), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    tables = [pd.read_csv(RunFolder(folder).seed(0).metrics) for folder in (out, other)]
    assert len(tables[0]) == NUM_STEPS
    columns = [name for name in tables[0] if "second" not in name]
    loads = [name for name in columns if name.startswith("load/")]
    assert tables[0][loads].equals(tables[1][loads])
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns], rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that nobody interrupts, by the number of their processes."""
    runs = {processes: tmp_path_factory.mktemp("whole") / str(processes) for processes in (1, 2)}
    for processes, out in runs.items():
        assert end(start(processes, out)).count("\n") == 1
    return runs


def test_two_processes_fit_what_one_does(whole):
    assert_same_run(whole[2], whole[1], exactly=False)
    tables = [pd.read_csv(run / "fit_digits.csv") for run in whole.values()]
    served = [name for name in tables[0] if "second" not in name]
    pd.testing.assert_frame_equal(tables[0][served], tables[1][served], rtol=1e-8)


def test_one_process_shows_what_two_have_fitted(whole):
    end(run(f"-m inference show {whole[2]}"))
    assert (whole[2] / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_killed_fit_goes_on_on_any_number_of_processes(trial, whole, tmp_path):
    """On as many processes bit for bit the undisturbed run; on another number the same to rounding."""
    before, who, after = KINDS[trial % len(KINDS)]
    draw, out = random.Random(trial), tmp_path / "run"
    process = start(before, out)
    wait_for_step(process, out, draw.randrange(1, NUM_STEPS - 10))
    time.sleep(draw.uniform(0, 0.05))
    started = workers(process) if before > 1 else []
    if who == "one":
        os.kill(draw.choice(started), signal.SIGKILL)
    else:
        for pid in (process.pid, *started):
            os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    _, stderr = process.communicate(timeout=600)
    if who == "one":
        assert time.monotonic() - killed < TIMEOUT
        assert_others_told(stderr, 1)
    end(start(after, out))
    assert_same_run(out, whole[2], exactly=after == 2 == before)


def assert_others_told(stderr: str, count: int) -> None:
    told = re.findall(r"^process \d stops: another process of this fit has ended, .*; start again with", stderr, re.M)
    assert len(told) == count, stderr
    assert len(re.findall(r"exitcode *: 2 ", stderr)) == count, stderr


def test_a_process_that_does_not_answer_ends_the_others_in_time(tmp_path):
    out = tmp_path / "run"
    process = start(2, out, timeout=5)
    wait_for_step(process, out, 5)
    os.kill(workers(process)[1], signal.SIGSTOP)
    _, stderr = process.communicate(timeout=120)
    assert "did not answer within" in stderr


def test_a_restart_by_torchrun_goes_on(whole, tmp_path):
    out = tmp_path / "run"
    process = start(2, out, restarts=1)
    wait_for_step(process, out, 20)
    os.kill(workers(process)[1], signal.SIGKILL)
    assert end(process).count("\n") == 1
    assert_same_run(out, whole[2], exactly=True)


# Bad input: a line and exit code 2 of each process --------------------------------------------------------------------


def assert_each_refuses(process: subprocess.Popen, line: str) -> None:
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert len(re.findall(line, stderr)) == 2, stderr
    assert len(re.findall(r"exitcode *: 2 ", stderr)) == 2, stderr
    assert "Traceback" not in stderr.partition("torch/distributed")[0], stderr


def test_groups_that_processes_do_not_divide(tmp_path):
    line = "2 processes share a batch: give --num-groups, a multiple of 2, got 3\n"
    assert_each_refuses(start(2, tmp_path / "run", options="--num-groups 3"), line)


@pytest.mark.parametrize("damage", ["another model", "other options"])
def test_a_checkpoint_that_does_not_fit(damage, whole, tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    shutil.copytree(whole[2], out)
    options = "--num-groups 4 --num-epochs 1 --dtype float64"
    options += " --num-experts 3 --assignment skip" if damage == "another model" else ""
    end(run(f"-m inference fit digits {options} --out {other} --json"))
    shutil.copy(RunFolder(other).seed(0).checkpoint, RunFolder(out).seed(0).checkpoint)
    assert_each_refuses(start(2, out), "fit.checkpoint belongs to another configuration: ")


def test_different_seeds(tmp_path):
    """Of processes that somebody starts by hand."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = f"-m inference fit digits {OPTIONS} --out {tmp_path / 'run'}"
    started = [run(f"{command} --seed {rank}", RANK=str(rank), **world) for rank in range(2)]
    for process in started:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 2
        assert stderr.startswith("seed must be the same in all processes, got 0 in process 0 and 1 in process 1")
        assert stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
