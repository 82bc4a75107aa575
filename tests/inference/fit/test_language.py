"""Fitting the language model, on a piece of its text."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from inference import language_task
from inference.cli import app
from inference.language_task import Language
from inference.tasks import ModelOptions
from inference.training.crops import Crops
from inference.training.evaluate import evaluate
from inference.training.run import FitOptions, run_fit
from inference.training.schedule import warm_up_and_cosine
from models.text import KIND_NAMES, Text, byte_kinds, text_data


@pytest.fixture(autouse=True)
def piece(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    whole = text_data()
    monkeypatch.setattr(
        language_task, "text_data", lambda: Text(whole.train[:5000], whole.validation[:400], whole.test[:400])
    )
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("assignment", "estimator", "baseline", "num_layers"),
    [
        ("gumbel-matching", "balanced", "leave-one-out", 2),
        ("gumbel-matching", "balanced", "decaying", 1),
        ("dependent-rounding", "weighted", "leave-one-out", 1),
        ("skip", "weighted", "decaying", 2),
    ],
)
def test_every_kind_of_objective_trains(assignment: str, estimator: str, baseline: str, num_layers: int) -> None:
    model = ModelOptions(assignment, baseline, num_layers=num_layers, hidden_features=16)
    particles = 2 if baseline == "leave-one-out" else 1
    options = FitOptions(2, 4, 6e-3, model, estimator, num_particles=particles)
    result = run_fit(Language(), options, seed=0)
    assert result.curve.loss.iloc[1] < result.curve.loss.iloc[0]
    # Nobody is dropped when it predicts, whatever happens in training.
    assert result.metrics["drop rate"] == 0
    assert len(result.use) == num_layers
    assert result.use[0].shape == (len(KIND_NAMES), 5)


def test_where_bytes_meet_in_attention_it_is_said(tmp_path: Path) -> None:
    arguments = ["language", "--num-epochs", "1", "--hidden-features", "8", "--num-seeds", "1"]
    for estimator, assignment in (("weighted", "skip"), ("balanced", "gumbel-matching")):
        out = str(tmp_path / estimator)
        result = CliRunner().invoke(
            app, ["fit", *arguments, "--estimator", estimator, "--assignment", assignment, "--out", out]
        )
        assert result.exit_code == 0, result.output
        assert ("biased surrogate" in result.stderr) == (estimator == "weighted")


def test_the_dense_model_is_one_expert() -> None:
    task = Language()
    model = task.build(ModelOptions("independent", "none", num_experts=1))
    metrics, (use,) = evaluate(task, model, task.test, sample=False)
    x, y = task.test
    kinds = byte_kinds(x).flatten().bincount(minlength=len(KIND_NAMES))
    assert torch.equal(use[:, 0], (kinds > 0).double())
    assert metrics["max/mean load"] == 1
    # New, it knows nothing: near eight bits per byte.
    logits, _ = model.causal_logits(x)
    nats = -logits.log_softmax(-1).gather(-1, y.unsqueeze(-1)).mean()
    assert metrics["bits per byte"] == pytest.approx(nats.item() / 0.6931471805599453)
    assert 6 < metrics["bits per byte"] < 10


def test_command_writes_text_and_pictures(tmp_path: Path) -> None:
    arguments = ["language", "--num-epochs", "1", "--hidden-features", "8", "--sample-text", "40", "--num-seeds", "2"]
    arguments += ["--estimator", "balanced", "--assignment", "gumbel-matching"]
    arguments += ["--baseline", "leave-one-out", "--num-layers", "2"]
    result = CliRunner().invoke(app, ["fit", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    written = (tmp_path / "fit_language_text.txt").read_text()
    assert "seed 0" in written
    assert "seed 1" in written
    table = pd.read_csv(tmp_path / "fit_language.csv")
    assert (table["bits per byte"] < 8).all()
    assert (table["reference: bigram entropy of this part (bits)"] < 4).all()
    for picture in ("fit_language_use.png", "fit_language_curve.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "missing", "surrogate"),
    [
        (["--estimator", "mixture", "--num-selected", "2", "--router", "hidden"], [], False),
        (["--estimator", "mixture", "--num-selected", "2", "--num-layers", "2"], [], True),
        (
            ["--assignment", "top-2-gates", "--load-balancing", "0.01"],
            ["Loads and drops", "Importance weights", "Router map", "Assignment and exchange"],
            False,
        ),
    ],
)
def test_several_experts_and_rules_are_fitted_shown_and_resumed(
    arguments: list[str], missing: list[str], surrogate: bool, tmp_path: Path
) -> None:
    out = ["--out", str(tmp_path)]
    arguments = ["language", "--experts-in", "last", "--hidden-features", "8", "--num-epochs", "1", *arguments]
    result = CliRunner().invoke(app, ["fit", *arguments, "--sample-text", "20", *out])
    assert result.exit_code == 0, result.output
    # Where the last block alone has experts, bytes meet in the capacity only.
    assert ("biased surrogate" in result.stderr) == surrogate
    table = pd.read_csv(tmp_path / "fit_language.csv")
    assert (table["bits per byte"] < 8).all()
    assert (table["drop rate"] == 0).all()
    assert (tmp_path / "fit_language_text.txt").stat().st_size > 20
    steps = pd.read_csv(tmp_path / "seed_0" / "metrics.csv")
    if missing:
        assert steps.max_mean_load.isna().all()
    else:
        site = "assignment_2"
        loads = steps[[f"load/{site}/{expert}" for expert in range(4)]].dropna()
        assert (loads.sum(axis=1) == 2 * 128).all()
        assert steps["effective_experts/y"].dropna().between(1, 2).all()
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    page = (tmp_path / "report.html").read_text()
    assert page.count("Left out: the model draws no assignment.") == len(missing)
    result = CliRunner().invoke(app, ["fit", "language", "--resume", *out])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["language", "--num-layers", "3"], "num_expert_blocks must be between 1 and 2, got 3"),
        (["language", "--baseline", "neural"], "no baseline that is a network"),
        (["language", "--load-balancing", "0.1"], "load_balancing=0.1"),
        (["language", "--batch-size", "0"], "batch_size must be a positive int, got 0"),
        (["language", "--sample-text", "-1"], "got -1 for language"),
        (["digits", "--sample-text", "5"], "got 5 for digits"),
    ],
)
def test_bad_options_give_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fit", *arguments, "--out", str(tmp_path / "new")])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split()) + " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_crops_begin_everywhere() -> None:
    torch.manual_seed(0)
    crops = Crops(torch.arange(20), length=4, batch_size=500)  # none of 16 is missed by chance
    x, y = next(crops)
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert set(x[:, 0].tolist()) == set(range(16))
    assert len(Crops(torch.arange(20), length=4, batch_size=2)) == 2


def test_ways_to_train_see_the_same_batches() -> None:
    """Whatever one of them draws; and a stream goes on where another stood."""
    batches = []
    for draws in (0, 5):
        torch.manual_seed(0)
        crops = Crops(torch.arange(1000), length=4, batch_size=3)
        batches.append([next(crops)[0] for _ in range(2) if torch.rand(draws) is not None])
    assert all(torch.equal(*pair) for pair in zip(*batches))
    other = Crops(torch.arange(1000), length=4, batch_size=3)
    other.load_state_dict(crops.state_dict())
    assert torch.equal(next(other)[0], next(crops)[0])


def test_schedule() -> None:
    rates = [warm_up_and_cosine(step, 200) for step in range(200)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) < 1
    assert min(rates[1:]) >= 0
