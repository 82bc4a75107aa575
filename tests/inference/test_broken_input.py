"""Broken input of ``fit`` and ``study``: one clear line, exit code 2, no traceback, and nothing lost."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from inference.cli import app
from inference.runs.checkpoint import FORMAT, load_checkpoint
from inference.runs.lock import FolderLock
from inference.runs.run_folder import RunFolder
from tests.inference.runs.test_checkpoint import same

RUN = ["fit", "piecewise", "--num-epochs", "2", "--checkpoint-every", "2", "--assignment", "skip"]
NUM_STEPS = 6


def refused(*arguments: str) -> str:
    """:returns: the one line that stands on stderr."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'TASK'"),
        (["letters"], "unknown task 'letters'; known are digits, piecewise"),
        (["digits", "--epochs", "3"], "No such option: --epochs"),
        (["digits", "--num-epochs", "many"], "Invalid value for '--num-epochs'"),
        (["digits", "--num-epochs", "0"], "num_epochs must be a positive int, got 0"),
        (["digits", "--batch-size", "-3"], "batch_size must be a positive int, got -3"),
        (["digits", "--learning-rate", "nan"], "learning_rate must be positive and finite, got nan"),
        (["digits", "--learning-rate", "inf"], "learning_rate must be positive and finite, got inf"),
        (["digits", "--num-seeds", "0"], "num_seeds must be a positive int, got 0"),
        (["digits", "--seed", "-1"], "seed must be an int from 0 to 4294967295, got -1"),
        (["digits", "--seed", "4294967295", "--num-seeds", "2"], "seed must be an int from 0 to 4294967294"),
        (["digits", "--num-particles", "0"], "num_particles must be a positive int, got 0"),
        (["digits", "--assignment", "auction"], "unknown procedure or rule 'auction'; known are independent, skip"),
        (["digits", "--capacity-factor", "-1"], "capacity_factor must be positive and finite, got -1.0"),
        (["digits", "--capacity-factor", "nan"], "capacity_factor must be positive and finite, got nan"),
        (["digits", "--assignment", "gumbel-matching", "--capacity-factor", "0.5"], "exceed"),
        (["digits", "--num-experts", "0"], "num_experts must be a positive int"),
        (["digits", "--hidden-features", "-4"], "hidden_features must be a positive int"),
        (["digits", "--num-layers", "3"], "num_layers must be 1 or 2, got 3"),
        (["digits", "--load-balancing", "-1"], "load_balancing must be a weight >= 0"),
        (["digits", "--load-balancing", "nan"], "load_balancing must be a weight >= 0"),
        (["digits", "--baseline", "leave-one-out", "--num-particles", "1"], "num_particles=1 must be >= 2"),
        (
            ["digits", "--estimator", "balanced", "--assignment", "dependent-rounding"],
            "DependentRounding has no joint log_prob",
        ),
        (["digits", "--estimator", "mixture"], "the estimator mixture wants several experts per datapoint"),
        (["digits", "--estimator", "mixture", "--num-selected", "1"], "num_selected must be at least 2, got 1"),
        (
            ["digits", "--estimator", "mixture", "--num-selected", "5"],
            "num_selected=5 exceeds the number of experts",
        ),
        (["digits", "--estimator", "balanced", "--num-selected", "2"], "the estimator balanced is for one expert per"),
        (["digits", "--num-selected", "2", "--baseline", "neural"], "several experts per datapoint need no baseline"),
        (
            ["digits", "--estimator", "mixture", "--num-selected", "2", "--assignment", "gumbel-matching"],
            "gumbel-matching gives every datapoint one expert, got num_selected=2: use one of independent",
        ),
        (
            ["digits", "--estimator", "mixture", "--num-selected", "5", "--num-layers", "2"],
            "num_selected=5 exceeds the number of experts, 4",
        ),
        (["digits", "--experts-in", "last"], "experts_in is an option of the language task, got 'last' for digits"),
        (["piecewise", "--router", "hidden"], "router is an option of the language task, got 'hidden' for piecewise"),
        (["digits", "--assignment", "switch"], "switch is a rule, which the language task alone is trained with"),
        (
            ["language", "--estimator", "mixture", "--num-selected", "2"],
            "num_selected=2 wants experts in the last block",
        ),
        (["language", "--experts-in", "middle"], "experts_in must be 'first' or 'last', got 'middle'"),
        (["language", "--router", "eyes"], "router must be 'bytes' or 'hidden', got 'eyes'"),
        (["language", "--router-scale", "-1"], "router_scale must be finite and at least 0, got -1.0"),
        (["language", "--assignment", "smear"], "unknown procedure or rule 'smear'"),
        (["language", "--assignment", "switch", "--estimator", "weighted"], "leave estimator out, got weighted"),
        (["language", "--assignment", "switch", "--num-selected", "2"], "leave num_selected out, got 2"),
        (["language", "--assignment", "switch", "--baseline", "decaying"], "leave baseline out, got decaying"),
        (["piecewise", "--num-layers", "2"], "the piecewise task has one layer"),
        (["digits", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["digits", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["digits", "--dtype", "float16"], "'float16' is not one of 'float32', 'float64'"),
        (["digits", "--checkpoint-every", "0"], "checkpoint_every must be a positive int, got 0"),
        (["digits", "--resume", "--overwrite"], "give --resume or --overwrite, not both"),
    ],
)
def test_bad_options_of_fit(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message.lower() in refused("fit", *arguments, "--out", str(tmp_path / "new")).lower()
    assert not (tmp_path / "new").exists()


def test_an_unknown_command() -> None:
    assert "No such command 'fitt'" in refused("fitt")


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--num-seeds", "0", "num_seeds must be a positive int, got 0"),
        ("--num-steps", "-5", "num_steps must be a positive int, got -5"),
        ("--break-at", "2", "break_at must lie inside (0, 1), got 2.0"),
        ("--learning-rate", "-1", "learning_rate must be positive"),
        ("--learning-rate", "nan", "learning_rate must be positive"),
        ("--capacity-factor", "0.5", "exceed"),
        ("--seed", "-1", "eed must be"),
        ("--steps", "3", "No such option: --steps"),
    ],
)
def test_bad_options_of_study(option: str, value: str, message: str, tmp_path: Path) -> None:
    arguments = ["study", "--num-seeds", "2", "--num-steps", "2", "--out", str(tmp_path / "new"), option, value]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


# Folders and files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_where_the_folder_should_be(tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    message = refused(*RUN, "--out", str(file / below))
    assert message.endswith(f"{file} is not a folder; give another --out")
    assert file.read_text() == "precious"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("done") / "run"
    result = CliRunner().invoke(app, [*RUN, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def edit(edited: Callable[[bytes], bytes], name: str = "") -> Callable[[Path], None]:
    """Change a file; without a name both checkpoints, since one would do."""

    def damage(out: Path) -> None:
        for file in [name] if name else ["seed_0/fit.checkpoint", "seed_0/fit.checkpoint.before"]:
            (out / file).write_bytes(edited((out / file).read_bytes()))

    return damage


def remove(name: str) -> Callable[[Path], None]:
    return lambda out: (out / name).unlink()


def swap(out: Path) -> None:
    """The checkpoint of seed 0 where one of seed 1 should be."""
    (out / "seed_0").rename(out / "seed_1")
    edit(lambda content: content.replace(b'"seed": 0', b'"seed": 1'), "config.json")(out)


@pytest.mark.parametrize(
    ("damage", "arguments", "message"),
    [
        (None, [], "holds a run: give --resume to go on, --overwrite to replace it, or another --out"),
        (remove("config.json"), [], "holds a run: give --resume to go on"),
        (None, ["--resume", "--learning-rate", "0.5"], "another configuration: learning_rate was 0.1 and is 0.5 now"),
        (
            None,
            ["--resume", "--num-seeds", "3", "--dtype", "float64"],
            "num_seeds was 1 and is 3 now; dtype was float32",
        ),
        (remove("config.json"), ["--resume", "--num-epochs", "3"], "num_epochs was 2 and is 3 now"),
        (edit(lambda content: content[:2000]), ["--resume"], "fit.checkpoint is truncated or damaged"),
        (edit(lambda content: b"GIF89a"), ["--resume"], "fit.checkpoint is not a checkpoint of a fit"),
        (edit(lambda content: b""), ["--resume"], "fit.checkpoint is not a checkpoint of a fit"),
        (
            edit(lambda content: content.replace(f'"format":"{FORMAT}"'.encode(), b'"format":"99"', 1)),
            ["--resume"],
            f"fit.checkpoint has format version 99, and this program reads {FORMAT}",
        ),
        (swap, ["--resume"], "fit.checkpoint belongs to another configuration: seed was 0 and is 1 now"),
        (edit(lambda content: content[:50], "config.json"), ["--resume"], "config.json is damaged"),
        (edit(lambda content: b"{}", "config.json"), ["--resume"], "config.json is damaged"),
        (edit(lambda content: b'{"options": {}}', "config.json"), ["--resume"], "another configuration: task was None"),
        (
            edit(lambda content: content.replace(b"0.1,", b'"fast",'), "config.json"),
            ["--resume"],
            "learning_rate must be float | None, got 'fast'",
        ),
        (
            edit(lambda content: content.replace(b'"skip"', b'"leap"'), "config.json"),
            ["--resume"],
            "unknown procedure or rule 'leap'; known are independent, skip",
        ),
        (remove("seed_0/metrics.csv"), ["--resume"], "metrics.csv lacks rows up to step 6"),
        (
            edit(lambda content: b"".join(content.splitlines(keepends=True)[:4]), "seed_0/metrics.csv"),
            ["--resume"],
            "metrics.csv lacks rows up to step 6",
        ),
    ],
)
def test_a_folder_that_does_not_fit(
    damage: Callable[[Path], None] | None, arguments: list[str], message: str, done: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    _copy(done, out)
    if damage is not None:
        damage(out)
    before = _content(out)
    command = ["fit", "piecewise"] if "--resume" in arguments else RUN
    assert message in refused(*command, *arguments, "--out", str(out))
    assert _content(out) == before


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _copy(done, out)
    newest = RunFolder(out).seed(0).checkpoint
    edit(lambda content: content[:2000], "seed_0/fit.checkpoint")(out)
    result = CliRunner().invoke(app, ["fit", "piecewise", "--resume", "--out", str(out)])
    assert result.exit_code == 0, result.output
    told = "is truncated or damaged, so that the checkpoint before it is read, after 4 steps"
    assert f"note: {newest} {told}\n" in result.stderr
    assert same(*(_timeless(load_checkpoint(RunFolder(run).seed(0).checkpoint)[1]) for run in (done, out)))


def _timeless(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in ("wall", "cpu")}


def test_a_folder_that_another_process_writes_to(done: Path, tmp_path: Path) -> None:
    message = f"another process is writing to {done}: wait for it, or give another --out"
    before = _content(done)
    with FolderLock(done):
        assert refused("fit", "piecewise", "--resume", "--out", str(done)) == message
        assert refused(*RUN, "--overwrite", "--out", str(done)) == message
        with pytest.raises(ValueError, match="another process"):
            FolderLock(done).take()
    assert _content(done) == before


@pytest.mark.parametrize("write", ["checkpoint", "metrics"])
def test_a_full_disk_in_the_middle(write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the second checkpoint, or at the third row: the first checkpoint is still good."""
    out = tmp_path / "run"
    folder = RunFolder(out).seed(0)
    real_sync = os.fsync

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(descriptor: int) -> None:
        if "checkpoint" in os.readlink(f"/proc/self/fd/{descriptor}") and folder.checkpoint.exists():
            full()
        real_sync(descriptor)

    if write == "checkpoint":
        monkeypatch.setattr(os, "fsync", sync)
    else:
        from inference.runs.metrics_log import MetricsLog

        real_append = MetricsLog.append
        monkeypatch.setattr(
            MetricsLog, "append", lambda log, row: full() if row.get("step") == 3 else real_append(log, row)
        )
    message = refused(*RUN, "--out", str(out))
    assert "No space left on device" in message
    monkeypatch.undo()
    before = folder.checkpoint.read_bytes()
    result = CliRunner().invoke(app, ["fit", "piecewise", "--out", str(out), "--resume"])
    assert result.exit_code == 0, result.output
    assert folder.checkpoint.read_bytes() != before
    assert len(folder.metrics.read_text().splitlines()) == 1 + NUM_STEPS


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inference.training.objective import ElboLoss

    real, calls = ElboLoss.__call__, []

    def loss(self: ElboLoss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(y))
        return real(self, x, y) * (torch.nan if len(calls) == 4 else 1)

    monkeypatch.setattr(ElboLoss, "__call__", loss)
    out = tmp_path / "run"
    assert "the loss is not finite at step 3" in refused(*RUN, "--out", str(out))
    monkeypatch.undo()
    result = CliRunner().invoke(app, ["fit", "piecewise", "--out", str(out), "--resume"])
    assert result.exit_code == 0, result.output


def _copy(source: Path, target: Path) -> None:
    for name, content in _content(source).items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(content)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
