"""The command ``show``: what a report holds, that it needs nothing else, and what it says of broken runs."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from inference.cli import app

SECTIONS = (
    "Run",
    "Test metrics",
    "Learning curves",
    "Loads and drops",
    "Importance weights",
    "Router map",
    "Assignment and exchange",
    "Expert use",
)
RUNS = {
    "piecewise": "piecewise --assignment gumbel-matching --num-epochs 12 --num-seeds 2 --dtype float64",
    "digits": "digits --num-epochs 2 --batch-size 400 --num-layers 2 --num-experts 3 --assignment skip --serve sample",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A fitted run of every kind with its report."""
    folders = {}
    for name, options in RUNS.items():
        folders[name] = tmp_path_factory.mktemp("runs") / name
        result = CliRunner().invoke(app, ["fit", *options.split(), "--out", str(folders[name])])
        assert result.exit_code == 0, result.output
        result = CliRunner().invoke(app, ["show", str(folders[name])])
        assert result.exit_code == 0, result.output
    return folders


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of one without its report, to be broken."""
    folder = tmp_path / "run"
    shutil.copytree(runs["piecewise"], folder)
    (folder / "report.html").unlink()
    return folder


def show(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["show", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(("name", "pictures"), [("piecewise", 8), ("digits", 10)])
def test_a_report_has_every_section_and_needs_nothing_else(runs: dict[str, Path], name: str, pictures: int) -> None:
    html = (runs[name] / "report.html").read_text(encoding="utf-8")
    assert tuple(re.findall(r"<h2[^>]*>([^<]*)</h2>", html)) == SECTIONS
    assert "Left out" not in html
    sources = re.findall(r'\ssrc="([^"]*)"', html)
    assert len(sources) == pictures
    assert all(re.fullmatch(r"data:image/png;base64,[A-Za-z0-9+/=]{10000,}", source) for source in sources)
    assert html.count("<figcaption>") == pictures
    assert all(link.startswith("#") for link in re.findall(r'\shref="([^"]*)"', html))
    assert not re.search(r"https?:|<script|<link|@import|url\(", html)
    assert "default-src 'none'" in html


def test_the_table_has_the_numbers_of_the_run(runs: dict[str, Path]) -> None:
    table = pd.read_csv(runs["piecewise"] / "fit_piecewise.csv", index_col="seed")
    html = (runs["piecewise"] / "report.html").read_text(encoding="utf-8")
    section = html.partition('<h2 id="test-metrics">')[2].partition("</section>")[0]
    rows = [re.findall(r"<td>([^<]*)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", section)[1:]]
    assert [row[0] for row in rows] == list(table)
    for name, mean, *seeds in rows:
        value, _, error = mean.partition(" ± ")
        assert float(value) == pytest.approx(table[name].mean(), rel=1e-3)
        assert float(error) == pytest.approx(table[name].std() / 2**0.5, rel=0.06)
        assert [float(seed) for seed in seeds] == pytest.approx(list(table[name]), rel=1e-3)


def test_json_has_the_numbers_of_the_run(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "other.html"
    code, output, _ = show(str(runs["digits"]), "--json", "--out", str(out))
    assert code == 0
    result = json.loads(output)
    row = pd.read_csv(runs["digits"] / "fit_digits.csv").iloc[0]
    assert result["test"]["accuracy, served"]["seeds"] == {"0": row["accuracy, served"]}
    assert result["test"]["accuracy, served"]["standard error"] is None
    last = pd.read_csv(runs["digits"] / "seed_0" / "metrics.csv").dropna().iloc[-1]
    assert result["last routing"]["first"]["loads"] == [last[f"load/first/{expert}"] for expert in range(3)]
    assert result["last routing"]["assignment"]["router_entropy"] == last["router_entropy/assignment"]
    # A datapoint has weight 0 where either of the layers dropped it.
    weights = result["weights of a draw"]
    assert weights["n"] == 300
    assert 0 < weights["ess"] <= 1 - weights["zeros"]
    assert result["steps"] == {"0": 6}
    assert out.exists()


def test_json_alone_writes_no_report(run: Path) -> None:
    code, output, _ = show(str(run), "--json", "--seed", "1")
    assert code == 0
    assert json.loads(output)["shown seed"] == 1
    assert not (run / "report.html").exists()


def test_a_fit_that_is_not_done_is_shown_without_its_table(run: Path) -> None:
    (run / "fit_piecewise.csv").unlink()
    # What a fit leaves that is writing just now: half a line.
    metrics = run / "seed_0" / "metrics.csv"
    metrics.write_text(metrics.read_text() + "37,13,1.2")
    code, output, _ = show(str(run))
    assert code == 0, output
    html = (run / "report.html").read_text(encoding="utf-8")
    assert html.count("Left out") == 1
    assert html.count("<img") == 8


def test_overwriting_a_run_takes_its_report_along(run: Path) -> None:
    show(str(run))
    assert (run / "report.html").exists()
    CliRunner().invoke(app, ["fit", "piecewise", "--num-epochs", "1", "--out", str(run), "--overwrite"])
    assert not (run / "report.html").exists()


def test_a_run_that_cannot_be_written_to_is_shown_elsewhere(run: Path, tmp_path: Path) -> None:
    code, _, message = show(str(run), "--out", str(tmp_path / "no" / "report.html"))
    assert (code, message.count("\n")) == (2, 1)
    assert "--out must be a file in a folder that exists" in message
    assert show(str(run), "--out", str(tmp_path / "report.html"))[0] == 0
    assert not (run / "report.html").exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: shutil.rmtree(run), "there is no folder"),
        (lambda run: (shutil.rmtree(run), run.touch()), "is a file: give the folder of a run"),
        (lambda run: (run / "config.json").unlink(), "is not the folder of a run: it has no config.json"),
        (lambda run: truncate(run / "config.json"), "config.json is damaged"),
        (lambda run: (run / "config.json").write_text("[]"), "config.json is damaged"),
        (lambda run: (run / "config.json").write_text('{"options": {"task": "tea"}}'), "config.json is damaged"),
        (
            lambda run: (run / "config.json").write_text((run / "config.json").read_text().replace("weighted", "no")),
            "config.json is damaged",
        ),
    ],
)
def test_what_is_not_a_run_gives_one_line(run: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(run)
    code, _, line = show(str(run))
    assert (code, line.count("\n")) == (2, 1)
    assert message in line
    assert not (run / "report.html").exists()


def checkpoints(seed: Path) -> list[Path]:
    return sorted(seed.glob("fit.checkpoint*"))


def two_kept(seed: Path) -> None:
    """Of which the newest is damaged."""
    newest = seed / "fit.checkpoint"
    shutil.copy(newest, seed / "fit.checkpoint.before")
    truncate(newest)


@pytest.mark.parametrize(
    ("damage", "message", "pictures", "left_out"),
    [
        (lambda seed: [file.unlink() for file in checkpoints(seed)], "no checkpoint in", 4, 4),
        (lambda seed: [truncate(file) for file in checkpoints(seed)], "fit.checkpoint is truncated or damaged", 4, 4),
        (lambda seed: [file.write_text("tea") for file in checkpoints(seed)], "is not a checkpoint of a fit", 4, 4),
        (lambda seed: two_kept(seed), "so that the checkpoint before it is read", 8, 0),
        (
            lambda seed: shutil.copy(seed.parent / "seed_1" / "fit.checkpoint", seed),
            "belongs to another configuration: seed was 1 and is 0 now",
            4,
            4,
        ),
        (lambda seed: (seed / "metrics.csv").write_text("step,epoch,loss\n1,1,tea\n"), "not a number in loss", 7, 1),
        (lambda seed: (seed / "metrics.csv").write_bytes(b"\xff\xfe\n"), "metrics.csv is damaged", 7, 1),
        (lambda seed: (seed / "epochs.csv").write_text("a,b\n1,2\n"), "epochs.csv is damaged (no column epoch", 8, 0),
        (lambda seed: (seed.parent / "fit_piecewise.csv").write_text(""), "fit_piecewise.csv is damaged", 8, 1),
    ],
)
def test_what_is_left_of_a_damaged_run_is_shown(
    run: Path, damage: Callable[[Path], None], message: str, pictures: int, left_out: int
) -> None:
    damage(run / "seed_0")
    code, _, line = show(str(run), "--seed", "0")
    assert (code, line.count("\n")) == (2, 1)
    assert message in line
    assert "report.html shows what is left" in line
    html = (run / "report.html").read_text(encoding="utf-8")
    assert tuple(re.findall(r"<h2[^>]*>([^<]*)</h2>", html)) == SECTIONS
    assert html.count("<img") == pictures
    assert html.lower().count("left out") == left_out


def test_an_unknown_seed_is_named(run: Path) -> None:
    code, _, line = show(str(run), "--seed", "7")
    assert (code, line) == (2, "seed 7 is not one of the run, which has 0, 1\n")
