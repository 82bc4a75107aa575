"""Fits whose batches are cut into groups, on one process and, started by torchrun, on several."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from inference.cli import app
from inference.runs.checkpoint import load_checkpoint
from inference.runs.run_folder import RunFolder
from inference.tasks import ModelOptions, Piecewise
from inference.training.run import Fit, FitOptions
from inference.training.sharing import InGroups
from inference.training.torchrun import restarted
from models.digits import digits_mixture
from prob_moe.distributions import CapacitySkip
from tests.inference.runs.test_checkpoint import same

ROOT = Path(__file__).parents[3]
#: 50 steps
OPTIONS = "--num-groups 4 --assignment skip --num-epochs 5 --dtype float64 --checkpoint-every 3"
NUM_STEPS = 50
TRIALS = int(os.environ.get("KILL_TRIALS", "2"))

# On one process -------------------------------------------------------------------------------------------------------


def fit_of(num_groups: int | None = 4) -> Fit:
    options = FitOptions(2, 100, 0.1, ModelOptions("skip"), num_groups=num_groups)
    return Fit(Piecewise(), options, seed=3)


def test_a_fit_in_groups_goes_on_as_if_nothing_had_happened():
    whole = fit_of()
    losses = [whole.step()["loss"] for _ in range(6)]
    first = fit_of()
    assert [first.step()["loss"] for _ in range(2)] == losses[:2]
    state = first.state_dict()
    second = fit_of()
    second.load_state_dict(state)
    assert [second.step()["loss"] for _ in range(4)] == losses[2:]
    assert "RMSE, served" in second.result().metrics


def test_groups_are_routed_each_by_itself():
    """A capacity for each of them, and other draws than for the batch as one."""
    fit = fit_of()
    row = fit.step()
    recorder = fit._recorder.draws["assignment"]
    assert recorder[1].shape == (4, 1, 25)
    assert sum(row[f"load/assignment/{expert}"] for expert in range(2)) <= 25
    assert fit_of(None).step()["loss"] != row["loss"]


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        ("digits --num-groups 0", {}, "num_groups must be a positive int, got 0"),
        ("digits --num-groups 2 --num-layers 2", {}, "models of one layer of experts on datapoints, got a Stacked"),
        ("digits", {"WORLD_SIZE": "2"}, "2 processes share a batch: give --num-groups, a multiple of 2, got None"),
        ("digits --num-groups 3", {"WORLD_SIZE": "2"}, "give --num-groups, a multiple of 2, got 3"),
        ("digits --timeout 0", {}, "timeout must be a positive number of seconds, got 0.0"),
    ],
)
def test_mistakes_end_with_one_line(options, environment, said, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["fit", *options.split(), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_restart_by_torchrun_means_resume(monkeypatch):
    assert not restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted()


def test_one_layer_only():
    with pytest.raises(ValueError, match="one layer of experts on datapoints, got a StackedMixture"):
        InGroups(2, 0, None).divide(digits_mixture(CapacitySkip, num_layers=2))


# On several -----------------------------------------------------------------------------------------------------------


def start(processes: int, out: Path) -> subprocess.Popen:
    resume = ["--resume"] if RunFolder(out).holds_run() else OPTIONS.split()
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = ["-m", "inference", "fit", "digits", *resume, "--out", str(out), "--json", "--timeout", "120"]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen) -> str:
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    return stdout


def numbers(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        return [number for name in sorted(value, key=str) for number in numbers(value[name])]
    if isinstance(value, list | tuple):
        return [number for inner in value for number in numbers(inner)]
    return [torch.as_tensor(value)] if isinstance(value, int | float | Tensor) else []


def assert_same_run(out: Path, other: Path, *, exactly: bool) -> None:
    """Parameters, optimiser, baselines, order of the data; the loads of every look; losses."""
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
    pd.testing.assert_frame_equal(tables[0][columns], tables[1][columns], rtol=1e-10, atol=1e-10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that nobody interrupts, by the number of their processes."""
    runs = {processes: tmp_path_factory.mktemp("whole") / str(processes) for processes in (1, 2)}
    for processes, out in runs.items():
        assert end(start(processes, out)).count("\n") == 1
    return runs


@pytest.mark.slow
def test_two_processes_fit_what_one_does(whole):
    assert_same_run(whole[2], whole[1], exactly=False)
    tables = [pd.read_csv(run / "fit_digits.csv") for run in whole.values()]
    served = [name for name in tables[0] if "second" not in name]
    pd.testing.assert_frame_equal(tables[0][served], tables[1][served], rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes of torchrun in /proc")
def test_a_killed_process_ends_all_and_any_number_goes_on(trial, whole, tmp_path):
    """On as many processes bit for bit the undisturbed run; on another number the same to rounding."""
    draw, out = random.Random(trial), tmp_path / "run"
    metrics = RunFolder(out).seed(0).metrics
    process = start(2, out)
    step = draw.randrange(1, NUM_STEPS - 10)
    while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") > step):
        time.sleep(0.001)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(draw.choice(workers)), signal.SIGKILL)
    _, stderr = process.communicate(timeout=600)
    assert process.returncode != 0, stderr
    processes = 1 + trial % 2
    end(start(processes, out))
    assert_same_run(out, whole[2], exactly=processes == 2)
