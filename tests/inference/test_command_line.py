"""What all commands share: names, outputs, help, the version."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

import prob_moe
from inference.cli import app
from tests.inference.test_broken_input import RUN, refused

COMMANDS = ["fit", "predict", "show", "compare", "study", "claims", "gradients", "likelihood", "posterior"]
SMALL = {
    "study": ["--num-seeds", "2", "--num-steps", "2", "--jobs", "1"],
    "gradients": ["--enumeration"],
    "likelihood": [],
    "posterior": [],
}


@pytest.mark.parametrize("command", [[], ["fit", "table"], ["study", "routing"], *([name] for name in COMMANDS)])
def test_help_fits_80_columns(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"prob_moe {prob_moe.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["fit", "digits", "--assignment", "gumbel-maching"], "did you mean gumbel-matching?"),
        (["fit", "digts"], "did you mean digits?"),
        (["study", "--arm", "dependent-roundin"], "did you mean dependent-rounding?"),
        (["study", "--grid", "ful"], "did you mean full?"),
    ],
)
def test_a_typo_is_answered_by_the_nearest_name(arguments: list[str], meant: str) -> None:
    message = refused(*arguments)
    assert meant in message
    assert "Value error" not in message


def test_the_spelling_of_fit_names_an_arm_of_study(tmp_path: Path) -> None:
    out = tmp_path / "new"
    arms = ["--arm", "gumbel-matching", "--arm", "dependent-rounding"]
    result = CliRunner().invoke(app, ["study", *SMALL["study"], *arms, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert {"gumbel-matching", "dependent-rounding"} <= set((out / "arms.csv").read_text().replace('"', "").split(","))


@pytest.mark.parametrize("command", SMALL)
def test_an_output_folder_that_is_a_file_or_a_run_is_refused_before_work(command: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    assert "is not a folder; give another --out" in refused(command, *SMALL[command], "--out", str(file))
    assert file.read_text() == "precious"
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert f"{run} holds a run of fit" in refused(command, *SMALL[command], "--out", str(run))
    assert [path.name for path in run.iterdir()] == ["config.json"]


def test_resume_on_nothing_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "none"
    assert "there is no run in" in refused(*RUN, "--resume", "--out", str(out))
    assert not out.exists()


def test_progress_is_not_on_stdout_and_leaves_no_control_characters(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, [*RUN, "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert "datapoints/s" not in result.stdout
    assert "\r" not in result.stderr
    assert "\x1b" not in result.stderr
