"""A table of one's own: fitted, predicted, shown."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from inference.tables.table_run import TableRun
from tests.inference.tables.conftest import QUICK, done, rents, run


def predicted(run_folder: Path, file: Path, out: Path, *options: object) -> pd.DataFrame:
    done("predict", run_folder, file, "--out", out, *options)
    return pd.read_csv(out)


def test_predictions_are_those_of_the_saved_estimator(fitted: Path, table: Path, tmp_path: Path) -> None:
    rows = predicted(fitted, table, tmp_path / "p.csv")
    assert list(rows) == ["row", "mean", "lower", "upper", "expert 0", "expert 1"]
    assert rows["row"].tolist() == list(range(1, 121))
    loaded = TableRun.load(fitted)
    x, notes = loaded.encoding.encode(rents())
    assert notes == []
    np.testing.assert_allclose(rows["mean"], loaded.estimator.predict(x), rtol=1e-5)
    np.testing.assert_allclose(rows[["lower", "upper"]], loaded.estimator.predict_interval(x, 0.9), rtol=1e-5)
    assert np.abs(rows["mean"] - rents()["rent"]).mean() < 40
    wider = predicted(fitted, table, tmp_path / "p.csv", "--coverage", "0.99", "--overwrite")
    assert (wider["upper"] > rows["upper"]).all()


def test_order_of_columns_others_and_single_rows_do_not_matter(fitted: Path, table: Path, tmp_path: Path) -> None:
    rows = predicted(fitted, table, tmp_path / "p.csv")
    one = rents().iloc[[7]][["rooms", "kind", "size"]].assign(owner="somebody")
    one.to_csv(tmp_path / "one.csv", index=False, sep=";")
    alone = predicted(fitted, tmp_path / "one.csv", tmp_path / "q.csv")
    np.testing.assert_allclose(alone.iloc[0, 1:].to_numpy(float), rows.iloc[7, 1:].to_numpy(float), rtol=1e-5)


def test_held_out_rows_are_by_seed_or_column(table: Path, tmp_path: Path) -> None:
    out = [tmp_path / name for name in "abc"]
    fit = ["fit", "table", table, "--target", "rent", *QUICK, "--json"]
    same = [json.loads(done(*fit, "--seed", seed, "--out", path).stdout) for seed, path in zip((0, 0, 1), out)]
    assert same[0] == same[1] != same[2]
    assert same[0]["metrics"]["validation"]["rows"] == 24
    part = np.where(np.arange(120) < 100, "train", "Validation")
    rents().assign(part=part).to_csv(tmp_path / "parts.csv", index=False)
    fit[2] = tmp_path / "parts.csv"
    found = json.loads(done(*fit, "--split-column", "part", "--out", tmp_path / "d").stdout)
    assert [found["metrics"][name]["rows"] for name in ("training", "validation")] == [100, 20]
    assert "part" not in (tmp_path / "d" / "table.json").read_text().split('"columns"')[1]


def test_classes_counts_and_networks(table: Path, tmp_path: Path) -> None:
    fit = ["fit", "table", table, "--num-epochs", 20, *QUICK]
    done(*fit, "--target", "kind", "--out", tmp_path / "classes")
    rows = predicted(tmp_path / "classes", table, tmp_path / "p.csv")
    assert [name for name in rows if name.startswith("probability")] == [
        f"probability {name}" for name in ("city", "suburb", "village")
    ]
    np.testing.assert_allclose(rows.filter(like="probability").sum(axis=1), 1, rtol=1e-5)
    assert (rows["class"] == rents()["kind"]).mean() > 0.7
    done(*fit, "--target", "rooms", "--family", "poisson", "--drop", "rent,kind", "--out", tmp_path / "counts")
    assert (predicted(tmp_path / "counts", table, tmp_path / "q.csv")["lower"] % 1 == 0).all()
    done(*fit, "--target", "rent", "--experts", "mlp", "--router", "mlp", "--out", tmp_path / "mlp")
    done("show", tmp_path / "mlp")
    assert "Search" in (tmp_path / "mlp" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        (["--target", "rent"], 4),
        (["--target", "rent", "--drop", "kind,rooms"], 4),
        (["--target", "rent", "--drop", "kind", "--num-experts", 3], 4),
        (["--target", "kind", "--drop", "rooms,rent"], 4),
        (["--target", "rooms", "--family", "poisson", "--router", "constant", "--validation", 0], 3),
    ],
    ids=["columns", "line", "plane", "classes", "no regions"],
)
def test_a_report_has_every_section(options: list[object], pictures: int, table: Path, tmp_path: Path) -> None:
    done("fit", "table", table, *options, *QUICK, "--out", tmp_path / "run")
    for _ in range(2):  # an earlier report is replaced
        done("show", tmp_path / "run")
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    headings = re.findall(r"<h2[^>]*>([^<]*)</h2>", html)
    assert headings == [
        "Fit", "How well it fits", "Search", "Experts", "Calibration", "Regions of the experts", "Example rows",
    ]  # fmt: skip
    assert html.count("<img") == pictures
    assert "http" not in html.replace("Content-Security-Policy", "").replace("http-equiv", "")
    numbers = json.loads(done("show", tmp_path / "run", "--json").stdout)
    assert set(numbers) == {"metrics", "notes", "shares"}


def test_a_report_without_rows_says_what_is_left_out(fitted: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    rows = (fitted / "rows.csv").read_bytes()
    (fitted / "rows.csv").write_bytes(b"")
    result = run("show", fitted, "--out", out)
    (fitted / "rows.csv").write_bytes(rows)
    assert result.exit_code == 2
    assert "shows what is left, without: Experts, Calibration" in result.stderr
    assert "Search" in out.read_text()


def test_notes_stand_on_the_page_and_on_stderr(tmp_path: Path) -> None:
    table = rents().assign(country="here", name=[f"flat {i}" for i in range(120)])
    table.loc[3, "size"] = None
    table.loc[5, "rent"] = 1e6
    table.to_csv(tmp_path / "t.csv", index=False)
    result = done(
        "fit", "table", tmp_path / "t.csv", "--target", "rent", *QUICK, "--seed", 3, "--out", tmp_path / "run"
    )
    assert "column 'country' has one value in all training rows: dropped" in result.stderr
    assert "column 'name' has 96 different words in 96 rows, which name rows: dropped" in result.stderr
    done("show", tmp_path / "run")
    assert "column &#x27;country&#x27; has one value" in (tmp_path / "run" / "report.html").read_text()
    new = rents(3).assign(kind="castle", country="there", name="x")
    new.to_csv(tmp_path / "new.csv", index=False)
    result = done("predict", tmp_path / "run", tmp_path / "new.csv", "--out", tmp_path / "p.csv")
    assert "column 'kind': 3 rows unseen in training ('castle'), taken as 'city'" in result.stderr


def test_a_parquet_file_is_a_table_where_pyarrow_is(fitted: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    rents().to_parquet(tmp_path / "t.parquet")
    assert len(predicted(fitted, tmp_path / "t.parquet", tmp_path / "p.csv")) == 120
