"""Nothing that a command has written is lost to another command, or to the same one once more, without --overwrite."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from inference.cli import app
from inference.runs.outputs import OUTPUTS
from tests.inference.test_broken_input import RUN, refused
from tests.inference.test_command_line import SMALL

#: a file of each command, as an earlier one would have left it
EARLIER = {
    "study": "arms.csv",
    "gradients": "expected_gradients.csv",
    "likelihood": "likelihood.json",
    "posterior": "posterior_2.nc",
}


@pytest.mark.parametrize(("command", "file"), EARLIER.items())
def test_earlier_results_are_not_replaced_unasked(command: str, file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("precious")
    message = refused(command, *SMALL[command], "--out", str(tmp_path))
    assert message.startswith(f"{tmp_path} holds {file}: give --overwrite to replace them, or another --out")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {file: "precious"}


#: what a study of lines with one arm does not write
OF_OTHER_STUDIES = {"claims.png", "serving.png", "serving.csv", "rows.csv"}


@pytest.mark.parametrize("command", ["study", "likelihood"])
def test_a_second_time_needs_overwrite(command: str, tmp_path: Path) -> None:
    arguments = [command, *SMALL[command], "--out", str(tmp_path)]
    arguments += ["--arm", "skip"] if command == "study" else ["--num-draws", "100"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    cached = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*")}
    refused(*arguments)
    written = {pattern for pattern in OUTPUTS[command] if list(tmp_path.glob(pattern))}
    assert written == set(OUTPUTS[command]) - OF_OTHER_STUDIES
    result = CliRunner().invoke(app, [*arguments, "--overwrite"])
    assert result.exit_code == 0, result.output
    # The finished runs are used once more.
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*")} == cached


def test_a_study_without_claims_leaves_no_picture_of_another_ones(tmp_path: Path) -> None:
    (tmp_path / "claims.png").write_text("of other arms")
    arguments = ["study", *SMALL["study"], "--arm", "skip", "--out", str(tmp_path), "--overwrite"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert not (tmp_path / "claims.png").exists()


def test_commands_that_share_a_folder_do_not_refuse_each_other(tmp_path: Path) -> None:
    (tmp_path / "gradients.csv").write_text("")
    for arguments in (["likelihood", "--num-draws", "100"], ["gradients", "--enumeration"]):
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
        assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("named", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_show_keeps_an_earlier_report(named: bool, tmp_path: Path) -> None:
    run, report = tmp_path / "run", tmp_path / "page.html"
    assert CliRunner().invoke(app, [*RUN, "--out", str(run)]).exit_code == 0
    arguments = ["show", str(run), *(["--out", str(report)] if named else [])]
    file = report if named else run / "report.html"
    file.write_text("precious")
    assert refused(*arguments) == f"{file} is there already: give --overwrite to replace it, or another --out"
    assert file.read_text() == "precious"
    # Without a report to write there is none to lose.
    assert CliRunner().invoke(app, ["show", str(run), "--json"]).exit_code == 0
    assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0
    assert file.read_text(encoding="utf-8").startswith("<!")
    # Its own report it may replace, during a fit for one; that of another run it keeps.
    assert CliRunner().invoke(app, arguments).exit_code == 0
    run.rename(tmp_path / "another")
    arguments[1] = str(tmp_path / "another")
    if named:
        assert "is there already" in refused(*arguments)
    else:
        assert CliRunner().invoke(app, arguments).exit_code == 0


@pytest.mark.parametrize(
    ("command", "file"), [*EARLIER.items(), ("study", "runs/0123.json"), ("posterior", "posterior_loo.csv")]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_fit_takes_no_folder_of_another_command(command: str, file: str, overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("precious")
    options = ["--overwrite"] if overwrite else []
    message = refused(*RUN, *options, "--out", str(tmp_path))
    assert message == f"{tmp_path} holds results of {command} ({file}): give another --out"
    assert [path.name for path in tmp_path.iterdir()] == [file.partition("/")[0]]


def broken_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is NaN at a step, counted from 0."""
    from inference.training.objective import ElboLoss

    real, calls = ElboLoss.__call__, []

    def loss(self: ElboLoss, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(len(y))
        return real(self, x, y) * (torch.nan if len(calls) == call + 1 else 1)

    monkeypatch.setattr(ElboLoss, "__call__", loss)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (3, "the last good checkpoint, after 2 steps, is a/../run/seed_0/fit.checkpoint"),
        (1, "there is no checkpoint before it"),
    ],
)
def test_a_nan_names_the_step_and_the_checkpoint(
    step: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path is the one that was given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    broken_at(step, monkeypatch)
    message = refused(*RUN, "--out", "a/../run")
    assert message.startswith(f"the loss is not finite at step {step}")
    assert message.endswith(f"; {told}")


def test_a_nan_in_the_first_step_of_a_replaced_run_names_no_checkpoint_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CliRunner().invoke(app, [*RUN, "--out", str(tmp_path / "run")]).exit_code == 0
    with monkeypatch.context() as patch:
        broken_at(0, patch)
        message = refused(*RUN, "--overwrite", "--out", str(tmp_path / "run"))
    assert message.endswith("; there is no checkpoint before it")


def test_a_nan_after_resume_names_the_checkpoint_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    for call, arguments in ((3, RUN), (0, ["fit", "piecewise", "--resume"])):
        with monkeypatch.context() as patch:
            broken_at(call, patch)
            message = refused(*arguments, "--out", str(out))
        assert message.endswith(f"; the last good checkpoint, after 2 steps, is {out / 'seed_0' / 'fit.checkpoint'}")
