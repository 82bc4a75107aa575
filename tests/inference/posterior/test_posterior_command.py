"""The command ``posterior`` end to end, small."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from inference.cli import app
from prob_moe._arviz import az

SMALL = ["--num-datapoints", "30", "--num-chains", "2", "--num-warmup", "60", "--num-draws", "40", "--num-jobs", "1"]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["posterior", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
def test_tables_pictures_and_draws(tmp_path: Path) -> None:
    code, output, errors = run(*SMALL, "--compare", "1", "--out", str(tmp_path), "--json")
    assert code == 0, errors
    content = json.loads(output)
    assert [row["num_experts"] for row in content["loo"]] == [2, 1]
    assert content["divergences"].keys() == {"1", "2"}
    by_name = {row["parameter"]: row for row in content["summary"]}
    assert abs(by_name["boundary[0]"]["mean"] - 0.5) < 0.2
    assert by_name["noise"]["r_hat_as_drawn"] is None
    assert len(pd.read_csv(tmp_path / "posterior_summary.csv")) == len(by_name)
    assert list(pd.read_csv(tmp_path / "posterior_loo.csv").num_experts) == [2, 1]
    for k in (1, 2):
        draws = az.from_netcdf(str(tmp_path / f"posterior_{k}.nc"))
        assert draws.posterior.experts.shape == (2, 40, k, 2)
    for picture in ("traces", "predictive", "loo"):
        assert (tmp_path / f"posterior_{picture}.png").stat().st_size > 10_000


def test_one_expert_alone_prints_its_tables(tmp_path: Path) -> None:
    code, output, errors = run(*SMALL, "--num-experts", "1", "--compare", "", "--out", str(tmp_path))
    assert code == 0, errors
    text = " ".join(output.split())
    assert "Posterior of 1 experts" not in text
    assert "experts[0, slope]" in text
    assert "boundary" not in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-experts", "0"], "num_experts must be a positive int, got 0"),
        (["--compare", "1,two"], "compare must be numbers of experts with commas between"),
        (["--compare", "1,-1"], "num_experts must be a positive int, got -1"),
        (["--num-chains", "1"], "num_chains must be an int of at least 2, got 1"),
        (["--num-draws", "0"], "num_draws must be an int of at least 4"),
        (["--num-jobs", "0"], "num_jobs must be an int of at least 1"),
        (["--num-datapoints", "1"], "num_datapoints must be an int of at least 2"),
        (["--break-at", "1"], "break_at must lie inside (0, 1)"),
        (["--out", "file"], "is not a folder"),
        (["--num-experts", "many"], "valid integer"),
    ],
)
def test_bad_options_give_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    code, _, errors = run(*SMALL, "--out", "new", *arguments)
    assert code == 2
    assert message in errors
    assert not Path("new").exists()
