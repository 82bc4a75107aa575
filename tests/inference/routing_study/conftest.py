"""Studies without training."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pandas as pd
import pytest

from inference.registry import plugins
from inference.registry.builtin import REGISTRY
from inference.routing_study.protocol import conduct
from inference.routing_study.tasks import Task
from inference.study import runner
from inference.study.cache import Cache
from inference.study.settings import Run
from tests.inference.routing_study.stand_in import COSTS, record


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
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pd.DataFrame]:
    """Conducts the study of some tasks, where arms have other costs if these are given."""

    def conducted(*tasks: Task, costs: Mapping[str, float] = COSTS) -> pd.DataFrame:
        monkeypatch.setattr(runner, "train", lambda run: record(run, costs))
        return conduct(tasks, Cache(tmp_path / "runs"))

    return conducted


@pytest.fixture
def _nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test loads is forgotten."""
    monkeypatch.setattr(plugins, "_loaded", set())
    before = REGISTRY.state()
    yield
    REGISTRY.restore(before)
