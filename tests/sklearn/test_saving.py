"""Estimators as files."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from sklearn.exceptions import NotFittedError

from prob_moe.sklearn import MixtureRegressor
from prob_moe.sklearn.saving import VERSION
from tests.sklearn.tables import two_lines

pytestmark = pytest.mark.filterwarnings("ignore::prob_moe.sklearn.FloorWarning")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[MixtureRegressor, Path, pd.DataFrame]:
    x, y = two_lines(60)
    table = pd.DataFrame(x, columns=["a", "b"])
    path = tmp_path / "mixture.safetensors"
    fitted = MixtureRegressor(2, expert_columns=["b"], restarts=6, random_state=np.random.RandomState(0)).fit(table, y)
    fitted.save(path)
    return fitted, path, table


def test_what_is_loaded_is_what_was_saved(saved: tuple[MixtureRegressor, Path, pd.DataFrame]) -> None:
    fitted, path, table = saved
    loaded = MixtureRegressor.load(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    np.testing.assert_array_equal(loaded.predict(table), fitted.predict(table))
    assert loaded.summary() == fitted.summary()
    assert loaded.get_params() == fitted.get_params() | {"random_state": None}
    assert set(vars(loaded)) == set(vars(fitted))
    assert all(type(value) is type(getattr(fitted, name)) for name, value in vars(loaded).items() if name[-1] == "_")
    with pytest.raises(ValueError, match="feature names"):
        loaded.predict(table[["b", "a"]])


def test_other_files_are_refused_by_name(saved: tuple[MixtureRegressor, Path, pd.DataFrame], tmp_path: Path) -> None:
    path, other = saved[1], tmp_path / "other"

    def rewritten(**changes: object) -> Path:
        header = {"format": "prob_moe.sklearn", "version": VERSION, "class": "MixtureRegressor"} | changes
        save_file(load_file(path), other, {"prob_moe": json.dumps(header)})
        return other

    with pytest.raises(ValueError, match=rf"other' is of version 99; this library reads {VERSION}"):
        MixtureRegressor.load(rewritten(version=99))
    with pytest.raises(ValueError, match=r"other' holds a MixtureClassifier; use MixtureClassifier.load"):
        MixtureRegressor.load(rewritten(**{"class": "MixtureClassifier"}))
    with pytest.raises(ValueError, match="but not of a saved estimator"):
        MixtureRegressor.load(rewritten(format="?"))
    other.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="other' is no file of a saved estimator, or a part of one"):
        MixtureRegressor.load(other)
    with pytest.raises(FileNotFoundError):
        MixtureRegressor.load(tmp_path / "none")
    with pytest.raises(NotFittedError):
        MixtureRegressor().save(other)
