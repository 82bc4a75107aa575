"""The command ``likelihood`` and what it prints: laws against one another, files, errors."""

import json
import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from inference.cli import app
from inference.likelihood.laws import likelihoods
from inference.likelihood.matrix_file import read_assignment, read_logits


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["likelihood", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_laws_sum_to_one_and_are_what_is_drawn() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64)
    results = likelihoods(logits, capacity=2, assignment=torch.tensor([0, 0, 1, 2]), num_draws=5000)
    assert set(results) == {"independent", "skip", "gumbel-matching", "dependent-rounding"}
    for name, result in results.items():
        frequency, _, _ = result.frequency()
        if name == "dependent-rounding":
            assert result.log_prob is None
            assert "no joint log_prob" in result.note
            assert frequency > 0
            continue
        assert result.total == pytest.approx(1, abs=1e-3)
        p = math.exp(result.log_prob)
        assert abs(frequency - p) < 5 * (p * (1 - p) / 5000) ** 0.5, name


def test_two_by_two_is_the_closed_form() -> None:
    logits = torch.tensor([[1.3, 0.2], [-0.4, 0.5]], dtype=torch.float64)
    result = likelihoods(logits, 1, torch.tensor([0, 1]), num_draws=100)["gumbel-matching"]
    delta = 1.3 + 0.5 - 0.2 + 0.4
    expected = math.exp(delta) * (math.exp(delta) - 1 - delta) / (math.exp(delta) - 1) ** 2
    assert result.log_prob == pytest.approx(math.log(expected), abs=1e-8)
    assert result.mode.tolist() == [0, 1]
    assert result.mode_log_prob == result.log_prob


def test_weights_of_the_draws_have_mean_one() -> None:
    """E[w_i] = 1 for every datapoint; draws are independent, datapoints of a draw are not."""
    results = likelihoods(torch.randn(5, 3, dtype=torch.float64), capacity=2, num_draws=5000)
    for name, result in results.items():
        means = result.weights.mean(-1)
        assert abs(means.mean() - 1) <= 5 * means.std() / 5000**0.5 + 1e-9, name
        summary = result.weight_summary()
        assert summary["mean w"] == pytest.approx(float(means.mean()))
        assert summary["max w"] == result.weights.max()
        assert (summary["dropped"] > 0) == (name == "skip")


def test_assignment_outside_a_support_has_probability_zero_there_and_only_there() -> None:
    results = likelihoods(torch.zeros(4, 2), 2, torch.tensor([0, 0, 0, 1]), num_draws=100)
    assert results["independent"].log_prob == pytest.approx(4 * math.log(0.5))
    for name in ("skip", "gumbel-matching"):
        assert results[name].log_prob == -math.inf
        assert "outside the support" in results[name].note
    dropped = likelihoods(torch.zeros(4, 2), 2, torch.tensor([0, 0, ~0, 1]), num_draws=100)
    assert dropped["skip"].log_prob == pytest.approx(4 * math.log(0.5) - math.log(3))
    assert dropped["independent"].log_prob == -math.inf


def test_large_problems_are_neither_enumerated_nor_too_large_for_memory() -> None:
    results = likelihoods(torch.randn(64, 8), 8)
    for result in results.values():
        assert result.total is None
        assert result.draws.numel() * 8 <= 2**23
    assert 0 < results["gumbel-matching"].error < 0.5


def test_an_assignment_that_no_draw_is_has_a_frequency_with_an_interval() -> None:
    frequency, low, high = likelihoods(torch.zeros(4, 2), 2, torch.zeros(4).long(), num_draws=64)["skip"].frequency()
    assert (frequency, low) == (0, 0)
    assert high == pytest.approx(0.0566, abs=1e-4)


def test_command_prints_writes_and_answers_machines(tmp_path: Path) -> None:
    code, output, errors = run("--num-draws", "300", "--out", str(tmp_path))
    assert code == 0, errors
    text = " ".join(output.split())
    assert "router: Σ log p_i(z_i)" in text
    assert "DependentRounding has no joint log_prob" in text
    assert (tmp_path / "likelihood.png").stat().st_size > 10_000
    code, output, _ = run("--num-draws", "300", "--out", str(tmp_path), "--overwrite", "--json")
    assert code == 0
    content = json.loads(output)
    assert content == json.loads((tmp_path / "likelihood.json").read_text())
    assert content["procedures"]["gumbel-matching"]["sum_of_probabilities"] == pytest.approx(1, abs=1e-3)
    # The same seed, the same answer; another, another.
    assert json.loads(run("--num-draws", "300", "--out", str(tmp_path), "--overwrite", "--json")[1]) == content
    assert (
        json.loads(run("--num-draws", "300", "--out", str(tmp_path), "--overwrite", "--json", "--seed", "1")[1])
        != content
    )


@pytest.mark.parametrize(("as_logits", "as_assignment"), [*product((".csv", ".npy"), repeat=2)])
def test_files_of_both_kinds_hold_the_same(as_logits: str, as_assignment: str, tmp_path: Path) -> None:
    logits, z = np.array([[0.5, -np.inf], [1.0, 2.0], [0.0, 0.25]]), np.array([0, 1, -2])
    for name, values, suffix in (("logits", logits, as_logits), ("z", z, as_assignment)):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".npy":
            np.save(path, values)
        else:
            np.savetxt(path, values, delimiter=",")
    assert read_logits(tmp_path / f"logits{as_logits}").tolist() == logits.tolist()
    assert read_assignment(tmp_path / f"z{as_assignment}").tolist() == z.tolist()
    code, output, _ = run(
        str(tmp_path / f"logits{as_logits}"),
        *("--assignment", str(tmp_path / f"z{as_assignment}"), "--capacity", "2", "--num-draws", "50"),
        *("--out", str(tmp_path), "--json"),
    )
    assert code == 0
    content = json.loads(output)
    assert content["assignment"] == [0, 1, -2]
    assert content["capacity"] == 2
    log_p = [0, -math.log(1 + math.exp(-1)), -math.log(1 + math.exp(-0.25))]
    assert content["router_log_prob"] == pytest.approx(sum(log_p))


FILES = {
    "word.csv": "1,2\n3,four\n",
    "ragged.csv": "1,2\n3\n",
    "empty.csv": "",
    "nan.csv": "1,2\nnan,4\n",
    "forbidden.csv": "1,2\n-inf,-inf\n",
    "logits.txt": "1,2\n",
    "fake.npy": "not numpy",
    "good.csv": "1,2\n3,4\n",
    "half.csv": "0.5\n1\n",
    "three.csv": "0\n1\n1\n",
    "far.csv": "0\n7\n",
    "table.csv": "0,1\n1,0\n",
}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.csv"], "gone.csv does not exist"),
        (["."], "is not a file"),
        (["word.csv"], "cannot read numbers from word.csv"),
        (["ragged.csv"], "cannot read numbers from ragged.csv"),
        (["empty.csv"], "empty.csv: it is empty"),
        (["nan.csv"], "nan.csv has NaN in row 1, column 0"),
        (["forbidden.csv"], "forbid every expert"),
        (["logits.txt"], "only .csv and .npy files are read"),
        (["fake.npy"], "cannot read numbers from fake.npy"),
        (["complex.npy"], "its numbers are of type complex128"),
        (["cube.npy"], "must hold a matrix (n, k), one row per datapoint; its shape is (2, 2, 2)"),
        (["good.csv", "--assignment", "half.csv"], "half.csv must hold whole numbers"),
        (["good.csv", "--assignment", "three.csv"], "each of the n = 2 datapoints"),
        (["good.csv", "--assignment", "far.csv"], "assignment sends datapoint 1 to 7"),
        (["good.csv", "--assignment", "table.csv"], "table.csv must hold one number per datapoint"),
        (["good.csv", "--capacity", "0"], "capacity must be a positive int, got 0"),
        (["--num-datapoints", "5", "--num-experts", "2", "--capacity", "2"], "capacity must be at least 3"),
        (["--capacity", "2", "--capacity-factor", "2"], "not both"),
        (["--capacity-factor", "nan"], "capacity_factor must be positive"),
        (["--num-experts", "0"], "must be positive ints, got 6 and 0"),
        (["--scale", "inf"], "scale must be finite"),
        (["--num-draws", "3"], "num_draws must be at least 4"),
    ],
)
def test_bad_input_gives_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    np.save(tmp_path / "complex.npy", np.ones((2, 2), dtype=complex))
    np.save(tmp_path / "cube.npy", np.ones((2, 2, 2)))
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(*arguments, "--out", "new")
    assert code == 2
    assert message in errors
    assert errors.count("\n") == 1
    assert output == ""
    assert not (tmp_path / "new").exists()
