"""Studies without training."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest

from inference.registry import plugins
from inference.registry.builtin import REGISTRY
from inference.routing_study.protocol import conduct
from inference.routing_study.task import Task
from inference.study import runner
from inference.study.cache import Cache, Record
from inference.study.settings import Run
from tests.inference.routing_study.stand_in import COSTS, record, task


class Memory(Cache):
    """Records that are forgotten with the test."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"))
        self.records: dict[Run, Record] = {}

    def load(self, run: Run) -> Record | None:
        return self.records.get(run)

    def store(self, run: Run, record: Record) -> None:
        self.records[run] = record


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """The runs that were trained, by the stand-in."""
    runs: list[Run] = []

    def train(run: Run) -> object:
        runs.append(run)
        return record(run)

    monkeypatch.setattr(runner, "train", train)
    return runs


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[..., pd.DataFrame]:
    """Conducts the study of some tasks, where arms have other costs if these are given."""

    def conducted(*tasks: Task, costs: Mapping[str, float] = COSTS) -> pd.DataFrame:
        monkeypatch.setattr(runner, "train", lambda run: record(run, costs))
        return conduct(tasks, Memory())

    return conducted


@pytest.fixture(scope="session")
def _done() -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "train", record)
        return conduct([task()], Memory())


@pytest.fixture
def table(_done: pd.DataFrame) -> pd.DataFrame:
    """That of one task with all arms of the stand-in."""
    return _done.copy()


@pytest.fixture
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test loads is forgotten."""
    monkeypatch.setattr(plugins, "_loaded", set())
    before = REGISTRY.state()
    yield
    REGISTRY.restore(before)
