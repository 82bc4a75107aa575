"""Records in files: hits, misses, interruptions."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from inference.study import cache as module
from inference.study.cache import Cache, Record
from inference.study.settings import DigitsRun, Run, ToyRun

RUN = ToyRun("skip", 0.1, 0.0)


def record(run: Run, nll: float = 1.0) -> Record:
    return Record(run.settings(), {"nll": [nll], "error": [0.5]}, seconds=2.0)


def test_a_stored_record_comes_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "runs")
    assert cache.load(RUN) is None
    cache.store(RUN, record(RUN))
    assert cache.load(RUN) == record(RUN)
    cache.store(RUN, record(RUN, nll=3.0))
    assert cache.load(RUN) == record(RUN, nll=3.0)
    assert len(list(cache.folder.iterdir())) == 1


def test_every_setting_and_the_format_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    paths = {cache.path(RUN), cache.path(DigitsRun("skip", 0.1, 0.0))}
    for field in fields(RUN):
        old = getattr(RUN, field.name)
        new = {"arm": "switch", "judged_on": "validation"}.get(field.name) or (old + 1) / 4
        paths.add(cache.path(replace(RUN, **{field.name: new})))
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    paths.add(cache.path(RUN))
    assert len(paths) == 3 + len(fields(RUN))


@pytest.mark.parametrize("content", ["", '{"settings": {}', '{"other": 1}', "[]"])
def test_a_broken_file_is_a_miss(tmp_path: Path, content: str) -> None:
    cache = Cache(tmp_path)
    cache.path(RUN).write_text(content)
    assert cache.load(RUN) is None


def test_a_write_that_fails_leaves_the_old_record(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.store(RUN, record(RUN))
    unwritable = record(RUN, nll=2.0)
    unwritable.metrics["nll"] = [object()]  # type: ignore[list-item]
    with pytest.raises(TypeError):
        cache.store(RUN, unwritable)
    assert cache.load(RUN) == record(RUN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"load_balancing": -1.0}, "load_balancing must be a weight >= 0, got -1.0"),
        ({"judged_on": "train"}, "judged_on must be validation or test, got 'train'"),
        ({"num_seeds": 0}, "num_seeds must be a positive int, got 0"),
        ({"break_at": 1.0}, r"break_at must lie inside \(0, 1\), got 1.0"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RUN, **change)
