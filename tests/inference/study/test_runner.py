"""What is missing is trained, wherever it is trained."""

import os
import signal
from pathlib import Path

import joblib
import pandas as pd
import pytest
from typer.testing import CliRunner

from inference.cli import app
from inference.study import runner
from inference.study.cache import Cache, Record
from inference.study.runner import run_all
from inference.study.settings import DigitsRun, Run, ToyRun
from inference.study.training import train
from inference.study.workers import workers

RUNS = [ToyRun("skip", rate, 0.0, num_seeds=2, num_steps=3) for rate in (0.1, 0.2, 0.3)]


def test_an_interrupted_study_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    trained: list[float] = []
    broken = True

    def stub(run: Run) -> Record:
        if broken and run.learning_rate == 0.3:
            raise KeyboardInterrupt
        trained.append(run.learning_rate)
        return Record(run.settings(), {"nll": [run.learning_rate], "error": [0.0]}, 0.0)

    monkeypatch.setattr(runner, "train", stub)
    with pytest.raises(KeyboardInterrupt):
        run_all(RUNS, cache)
    assert trained == [0.1, 0.2]
    broken = False
    done: list[int] = []
    records = run_all(RUNS, cache, advance=done.append)
    assert trained == [0.1, 0.2, 0.3]
    assert done == [2, 1]
    assert [record.metrics["nll"] for record in records] == [[0.1], [0.2], [0.3]]
    run_all(RUNS, cache)
    assert len(trained) == 3


def test_equal_runs_are_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Run] = []

    def stub(run: Run) -> Record:
        trained.append(run)
        return Record(run.settings(), {"nll": [0.0], "error": [0.0]}, 0.0)

    monkeypatch.setattr(runner, "train", stub)
    assert len(run_all([RUNS[0], RUNS[1], RUNS[0]], Cache(tmp_path))) == 3
    assert trained == RUNS[:2]


@pytest.mark.parametrize("run", [RUNS[0], DigitsRun("switch", 3e-3, 0.1, num_epochs=1)], ids=lambda run: run.task)
def test_a_run_depends_on_its_settings_only(run: Run) -> None:
    first, again = train(run), train(run)
    assert first.metrics == again.metrics
    assert first.settings == run.settings()
    assert {len(values) for values in first.metrics.values()} == {2 if run.task == "lines" else 1}
    assert train(type(run)(**{**vars(run), "learning_rate": 0.05})).metrics != first.metrics


def test_arms_share_data_and_start() -> None:
    """Before the first step all mixtures are one, so an arm of learning rate (nearly) 0 changes nothing."""
    still = [train(ToyRun(arm, 1e-12, 0.0, num_seeds=2, num_steps=1)) for arm in ("skip", "dependent-rounding")]
    assert still[0].metrics == still[1].metrics


def test_dask_trains_the_same(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    here = run_all(RUNS[:2], Cache(tmp_path / "here"))
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        there = run_all(RUNS[:2], Cache(tmp_path / "there"))
    assert [record.metrics for record in there] == [record.metrics for record in here]
    assert len(list((tmp_path / "there").iterdir())) == 2


@pytest.mark.slow
def test_what_a_worker_had_under_way_when_it_died_is_trained_again(tmp_path: Path) -> None:
    """With the results of one process."""
    pytest.importorskip("distributed")
    runs = [ToyRun("skip", 0.1 + rate / 100, 0.0, num_seeds=4, num_steps=60) for rate in range(8)]
    here = run_all(runs, Cache(tmp_path / "here"))
    killed: list[int] = []
    with workers("local", 2) as client:
        pids = client.run(os.getpid)

        def kill_one(count: int) -> None:
            """When the first run is done, and others are under way."""
            busy = [address for address, keys in client.processing().items() if keys]
            if count and not killed and busy:
                killed.append(pids[busy[0]])
                os.kill(killed[0], signal.SIGKILL)

        there = run_all(runs, Cache(tmp_path / "there"), advance=kill_one)
        assert len(killed) == 1
        assert killed[0] not in client.run(os.getpid).values()
    assert [record.metrics for record in there] == [record.metrics for record in here]


@pytest.mark.slow
def test_the_command_makes_a_cluster_of_this_machine(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    small = ["--arm", "skip", "--task", "lines, break at 0.5", "--num-seeds", "2", "--num-steps", "2"]
    tables = []
    for options in (["--scheduler", "local", "--jobs", "2"], ["--jobs", "1"]):
        out = tmp_path / options[0].strip("-")
        result = CliRunner().invoke(app, ["study", *small, *options, "--out", str(out)])
        assert result.exit_code == 0, result.output
        tables.append(pd.read_csv(out / "seeds.csv").drop(columns="seconds", errors="ignore"))
    pd.testing.assert_frame_equal(*tables)
