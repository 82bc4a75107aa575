"""Networks for a table, stopped and gone on with."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.tables import keeper
from tests.inference.tables.conftest import done, rents, run
from tests.inference.test_broken_input import refused


def stop_at(look: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal that comes before a look at the rows set aside, counted over all fits."""
    original, looks = keeper.TableKeeper.keep, iter(range(10**6))

    def keep(self: Any, number: int, state: Callable[[], dict]) -> None:
        if next(looks) == look:
            self.stop.received = signal.SIGINT
        original(self, number, state)

    monkeypatch.setattr(keeper.TableKeeper, "keep", keep)


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["--num-selected", 2, "--num-experts", 3], marks=pytest.mark.slow)],
    ids=["exact", "bound"],
)
def test_a_fit_that_was_stopped_goes_on_as_if_nothing_had_happened(
    options: list, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = [
        "fit",
        "table",
        table,
        "--target",
        "rent",
        "--experts",
        "mlp",
        "--num-epochs",
        120,
        "--restarts",
        2,
        *options,
    ]
    done(*fit, "--out", tmp_path / "whole")
    out = tmp_path / "stopped"
    for look, more in ((30, []), (80, ["--resume"])):  # in the first fit, and in the second one
        with monkeypatch.context() as patched:
            stop_at(look, patched)
            result = run(*fit, "--out", out, *more)
        assert result.exit_code == 130
        assert "stopped by SIGINT" in result.stderr
        assert "go on with the same command and --resume" in result.stderr
        assert not (out / "table.json").exists()
    assert "holds a fit that was stopped" in refused(*map(str, fit), "--out", str(out))
    other = [str(each) for each in fit] + ["--seed", "1", "--out", str(out), "--resume"]
    assert "was asked for otherwise: seed was 0 and is 1 now" in refused(*other)
    done(*fit, "--out", out, "--resume")
    for file in ("estimator.safetensors", "table.json"):
        assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert not list(out.glob("table.checkpoint*"))


def test_a_checkpoint_that_is_broken_or_not_there(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = [str(each) for each in ("fit", "table", table, "--target", "rent", "--experts", "mlp", "--num-epochs", 50)]
    assert "there is no fit in" in refused(*fit, "--resume", "--out", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    assert "--resume or --overwrite, not both" in refused(*fit, "--resume", "--overwrite", "--out", str(tmp_path))
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        stop_at(10, patched)
        assert run(*fit, "--out", out).exit_code == 130
    file = out / "table.checkpoint"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "is truncated or damaged: put a copy" in refused(*fit, "--out", str(out), "--resume")
    file.write_bytes(whole)
    rents(60).to_csv(tmp_path / "other.csv", index=False)
    fit[2] = str(tmp_path / "other.csv")
    assert "was asked for otherwise: table was" in refused(*fit, "--out", str(out), "--resume")
    done(*fit, "--out", out, "--overwrite")
    assert not file.exists()
