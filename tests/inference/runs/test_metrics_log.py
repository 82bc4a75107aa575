"""The tables and events of a fit have every row once, whatever happened on the way."""

from pathlib import Path

import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from inference.runs.metrics_log import MetricsLog
from inference.tasks import Piecewise
from inference.training.run import FitOptions
from tests.inference.fit.test_resume import run_and_resume


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "metrics.csv"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.append({"step": step, "loss": step / 10} | ({"name, with comma": 'a "b"'} if step % 2 else {}))
    # Complete without being closed.
    assert list(pd.read_csv(path).step) == [1, 2, 3, 4, 5]
    log.close()
    return path


def test_rows_behind_the_checkpoint_are_cut_and_written_again(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole + b'6,0.6,"a "')
    log = MetricsLog(path)
    log.cut(3)
    log.append({"step": 4, "loss": 0.4})
    log.append({"step": 5, "loss": 0.5, "name, with comma": 'a "b"'})
    log.close()
    assert path.read_bytes() == whole
    assert list(pd.read_csv(path)["name, with comma"].notna()) == [True, False, True, False, True]


def test_a_cut_to_nothing_starts_anew(path: Path) -> None:
    log = MetricsLog(path)
    log.cut(0)
    assert not path.exists()
    log.append({"step": 1, "other": 2.0})
    log.close()
    assert path.read_text() == "step,other\n1,2.0\n"


def test_missing_rows_are_noticed(path: Path) -> None:
    with pytest.raises(ValueError, match=r"metrics.csv lacks rows up to step 7"):
        MetricsLog(path).cut(7)
    assert len(pd.read_csv(path)) == 5


def test_a_new_column_is_refused(path: Path) -> None:
    log = MetricsLog(path)
    log.cut(5)
    with pytest.raises(ValueError, match=r"columns \['extra'\] are not in the header"):
        log.append({"step": 6, "extra": 1.0})


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    full = tmp_path / "full.csv"
    full.symlink_to("/dev/full")
    log = MetricsLog(full)
    with pytest.raises(OSError, match=r"No space left on device: '.*full.csv'"):
        log.append({"step": 1})


def test_events_say_what_the_table_says(tmp_path: Path) -> None:
    """Also where steps behind the checkpoint are done twice: TensorBoard purges what is out of date."""
    options = FitOptions(3, 12, 0.1)
    _, folder = run_and_resume(Piecewise(num_datapoints=50), options, tmp_path, every=4, stops=[6, 7])
    events = EventAccumulator(str(folder.events)).Reload()
    table = pd.read_csv(folder.metrics)
    assert len(list(folder.events.iterdir())) == 3
    for name in ("loss", "load/assignment/0", "drop_rate"):
        points = table[["step", name]].dropna()
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == list(points.step)
        assert [scalar.value for scalar in scalars] == pytest.approx(list(points[name]), rel=1e-6)
