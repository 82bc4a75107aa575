"""What is wrong with a table is said in one line, with exit code 2, and nothing is left half-written."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.inference.tables.conftest import QUICK, rents
from tests.inference.test_broken_input import refused


def refused_table(content: object, tmp_path: Path, *options: str) -> str:
    """:returns: the one line that stands on stderr."""
    file, out = tmp_path / "t.csv", tmp_path / "run"
    if isinstance(content, pd.DataFrame):
        content.to_csv(file, index=False)
    else:
        file.write_bytes(content)
    target = () if "--target" in options else ("--target", "rent")
    line = refused("fit", "table", str(file), *target, *QUICK, "--out", str(out), *options)
    assert not out.exists()
    return line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: give a CSV file with a header"),
        (b"size,rent\n", "has a header and no rows"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is no CSV file in UTF-8"),
        (b"size,rent\n1,2,3,4\n1,2\n", "is no CSV file"),
        (b"size,rent,size\n1,2,3\n", "two columns are named 'size'"),
        (b"size,,rent\n1,2,3\n", "column 2 has no name in the header"),
        (b"1,2\n3,4\n", "the first line has numbers only (1, 2); a header is needed"),
        (b"size,rent\n1,2\n", "there is 1 row to train with: a fit needs at least 2"),
        (b"size,price\n1,2\n2,3\n", "the table has no column 'rent' for the target; it has size, price"),
        (b"size,rent\n1,2\n2,\n3,4\n", "the target 'rent' is missing in 1 of 3 rows, first in row 2"),
        (b"size,rent\n1,2\nbig,3\n3,4\n", "column 'size' has numbers, but 'big' in row 2: mend the cell"),
        (b"size,rent\n1,2\ninf,3\n3,4\n", "column 'size' is infinite in row 2"),
        (b"since,rent\n2020-01-02,2\n2021-03-04,3\n", "column 'since' has dates (2020-01-02): make numbers of them"),
        (b"since,rent\n2.1.2020,2\n4.3.2021,3\n", "column 'since' has dates (2.1.2020)"),
        (b"size,rent\n1,2\n1,3\n", "no column is left to explain the target: column 'size' has one value"),
    ],
)
def test_a_broken_table(content: bytes, message: str, tmp_path: Path) -> None:
    assert message in refused_table(content, tmp_path, "--validation", "0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-experts", "97"], "--num-experts 97 is more than the 96 rows to train with"),
        (["--num-experts", "0"], "--num-experts must be at least 1, got 0"),
        (["--validation", "1"], "--validation must be at least 0 and less than 1, got 1"),
        (
            ["--router-columns", "color"],
            "--router-columns names 'color', which the table does not have; it has",
        ),
        (["--expert-columns", "rent"], "--expert-columns names 'rent', which is the target"),
        (["--drop", "color"], "--drop names 'color'"),
        (["--split-column", "kind"], "must say train or validation, but says '"),
        (["--family", "poisson"], "y must hold counts for family='poisson'"),
        (["--target", "kind", "--family", "gaussian"], "column 'kind' has numbers, but '"),
        (["--offset", "color"], "the table has no column 'color' for --offset"),
        (["--offset", "size", "--family", "classes"], "--offset and --trials are for numbers"),
        (["--num-selected", "5"], "num_selected=5 must be at most the number of experts, 2"),
        (["--family", "normal"], "is not one of"),
    ],
)
def test_wrong_options(options: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused_table(rents(), tmp_path, *options)


def test_words_that_mean_numbers_can_be_declared(tmp_path: Path) -> None:
    table = rents().assign(kind=["1", "2", "3", "many"] * 30)
    assert "column 'kind' has numbers, but 'many' in row" in refused_table(table, tmp_path)
    assert "num_selected=5" in refused_table(table, tmp_path, "--categories", "kind", "--num-selected", "5")


@pytest.fixture
def broken(fitted: Path, tmp_path: Path) -> Path:
    """A copy of a run."""
    folder = tmp_path / "run"
    shutil.copytree(fitted, folder)
    return folder


@pytest.mark.parametrize("command", ["predict", "show"])
def test_broken_runs(command: str, broken: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def said() -> str:
        more = [str(table)] if command == "predict" else []
        line = refused(command, str(broken), *more, "--out", str(out))
        assert not out.exists()
        return line

    estimator = broken / "estimator.safetensors"
    whole = estimator.read_bytes()
    estimator.write_bytes(whole[: len(whole) // 2])
    assert "estimator.safetensors is damaged" in said()
    assert "fit the table again" in said()
    estimator.unlink()
    assert "estimator.safetensors is damaged (No such file" in said()
    estimator.write_bytes(whole)
    config = broken / "table.json"
    plain = json.loads(config.read_text())
    config.write_text(json.dumps(plain | {"version": 99}))
    assert "is of version 99, and this program reads version 1: fit the table again" in said()
    config.write_text(config.read_text()[:50])
    assert "table.json is damaged" in said()
    if command == "predict":
        config.unlink()
        assert "holds no fit of a table: python -m inference fit table FILE.csv" in said()


def test_a_table_that_does_not_fit_the_run(fitted: Path, table: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "t.csv", tmp_path / "p.csv"
    rents(5).drop(columns=["size", "kind"]).to_csv(file, index=False)
    predict = ["predict", str(fitted), str(file), "--out", str(out)]
    assert "the table lacks column 'size', 'kind', which the fit was made with" in refused(*predict)
    rents(5).assign(size="big").to_csv(file, index=False)
    assert "column 'size' has numbers, but 'big' in row 1" in refused(*predict)
    assert "--coverage must lie between 0 and 1, got 2" in refused(*predict, "--coverage", "2")
    assert not out.exists()
    out.write_text("precious")
    assert "is there already: give --overwrite" in refused(*predict)
    assert out.read_text() == "precious"


def test_runs_are_not_overwritten_unasked(fitted: Path, table: Path, tmp_path: Path) -> None:
    fit = ["fit", "table", str(table), "--target", "rent", *QUICK]
    before = (fitted / "table.json").read_text()
    assert "holds a fit of a table: give --overwrite to replace it" in refused(*fit, "--out", str(fitted))
    assert "num_experts" not in refused("fit", "piecewise", "--out", str(fitted))
    assert (fitted / "table.json").read_text() == before
    (tmp_path / "config.json").write_text("{}")
    assert "holds a run of another fit" in refused(*fit, "--out", str(tmp_path))
