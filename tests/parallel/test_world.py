"""A world of processes that fail or hang ends by itself."""

import time

import pytest

from tests.parallel.world import run_world


def fail(rank: int) -> None:
    if rank == 1:
        raise ValueError("this one fails")


def hang(rank: int) -> None:
    time.sleep(1000 * rank)


@pytest.mark.slow
def test_errors_and_hanging_processes_are_reported(tmp_path):
    (tmp_path / "first").mkdir()
    with pytest.raises(RuntimeError, match=r"process 1: (.|\n)*this one fails"):
        run_world(2, fail, tmp_path / "first")
    (tmp_path / "second").mkdir()
    with pytest.raises(RuntimeError, match=r"processes \[1\] were not done"):
        run_world(2, hang, tmp_path / "second", limit=30)
