"""The command ``fit`` end to end, small; its losses; its pictures' numbers."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from inference.batches import Minibatches
from inference.cli import app
from inference.evaluate import evaluate
from inference.fit_run import FitOptions, run_fit
from inference.objective import Assignment, BalancedLoss, Baseline, Estimator
from inference.tasks import Digits, ModelOptions, Piecewise
from models.piecewise import piecewise_data, piecewise_mixture
from prob_moe.distributions import CapacitySkip
from tests.estimators.replicas import standard_errors_off


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["fit", *arguments])
    return result.exit_code, " ".join(result.output.split())


def test_digits_learn_and_leave_table_and_pictures(tmp_path: Path) -> None:
    arguments = ["digits", "--num-epochs", "8", "--num-seeds", "2", "--assignment", "dependent-rounding"]
    code, output = run(*arguments, "--out", str(tmp_path))
    assert code == 0, output
    table = pd.read_csv(tmp_path / "fit_digits.csv")
    assert list(table.seed) == [0, 1]
    assert (table["accuracy, served"] > 0.9).all()
    assert table["accuracy, served"].nunique() + table["NLL, served (nats)"].nunique() > 2
    curve = pd.read_csv(tmp_path / "fit_digits_curve.csv")
    assert list(curve.epoch) == [*range(1, 9)] * 2
    assert curve.loss.iloc[7] < curve.loss.iloc[0] / 3
    for picture in ("fit_digits_use.png", "fit_digits_curve.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("assignment", "estimator", "baseline", "num_layers"),
    [
        ("independent", "weighted", "none", 2),
        ("skip", "weighted", "leave-one-out", 2),
        ("gumbel-matching", "unweighted", "neural", 1),
        ("skip", "balanced", "decaying", 2),
    ],
)
def test_every_kind_of_option_trains(assignment: str, estimator: str, baseline: str, num_layers: int) -> None:
    model = ModelOptions(Assignment(assignment), Baseline(baseline), num_layers=num_layers)
    particles = 2 if baseline == "leave-one-out" else 1
    task = Digits()
    options = FitOptions(2, 500, 1e-2, model, Estimator(estimator), num_particles=particles, sample=True)
    seen = []
    result = run_fit(task, options, seed=0, advance=seen.append)
    # Three batches an epoch, the last of them smaller.
    assert len(seen) == 6
    assert result.curve.loss.iloc[1] < result.curve.loss.iloc[0]
    assert len(result.use) == num_layers
    for use in result.use:
        torch.testing.assert_close(use.sum(-1), torch.ones(10, dtype=torch.float64))
    assert sum("drop rate" in name for name in result.metrics) == num_layers


def test_expert_use_counts_the_groups() -> None:
    task = Piecewise(num_datapoints=50)
    model = task.build(ModelOptions(Assignment.SKIP, capacity_factor=1.0))
    _, (use,) = evaluate(task, model, task.test, sample=False)
    x, _ = task.test
    _, z = model.serve(x)
    for group in range(2):
        members = [i for i in range(50) if (float(x[i]) >= 0.5) == bool(group)]
        for column in range(3):
            count = sum((int(z[i]) if z[i] >= 0 else 2) == column for i in members)
            assert use[group, column] == pytest.approx(count / len(members))


def test_piecewise_command(tmp_path: Path) -> None:
    code, output = run("piecewise", "--num-epochs", "3", "--serve", "sample", "--out", str(tmp_path))
    assert code == 0, output
    assert "RMSE, served" in output
    assert (tmp_path / "fit_piecewise_use.png").stat().st_size > 5_000


def test_minibatches_cover_the_data_in_new_orders() -> None:
    data = torch.arange(10)
    batches = Minibatches(data, -data, batch_size=4)
    passes = []
    for _ in range(2):
        xs, ys = zip(*(next(batches) for _ in range(3)))
        assert [len(x) for x in xs] == [4, 4, 2]
        assert torch.equal(torch.cat(xs), -torch.cat(ys))
        passes.append(torch.cat(xs))
        assert torch.equal(passes[-1].sort().values, data)
    assert not torch.equal(*passes)


def test_baseline_of_the_balanced_loss_shifts_neither_value_nor_gradient() -> None:
    data = piecewise_data((), num_datapoints=4)
    mixture = piecewise_mixture(CapacitySkip, noise=0.5)
    shifted = BalancedLoss(mixture, decaying_baseline=True)
    plain = BalancedLoss(mixture)
    draws = {}
    for loss in (shifted, plain):
        rows = []
        for _ in range(300):
            value = loss(*data)
            gradient = torch.autograd.grad(value, mixture.router.weight)[0]
            rows.append(torch.cat([value.detach().view(1), gradient.flatten()]))
        draws[loss] = torch.stack(rows[20:]).double()
    difference = draws[shifted] - draws[plain]
    assert standard_errors_off(difference, torch.zeros_like(difference[0])) < 5
    assert (draws[shifted].var(0)[1:] < draws[plain].var(0)[1:]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "--num-epochs", "0"], "num_epochs must be a positive int, got 0"),
        (["digits", "--batch-size", "0"], "batch_size must be a positive int, got 0"),
        (["digits", "--num-seeds", "0"], "num_seeds must be a positive int, got 0"),
        (["digits", "--num-particles", "0"], "num_particles must be a positive int, got 0"),
        (["digits", "--learning-rate", "nan"], "learning_rate must be positive and finite"),
        (["digits", "--capacity-factor", "-1"], "capacity_factor must be positive"),
        (["digits", "--num-experts", "0"], "num_experts must be a positive int"),
        (["digits", "--num-layers", "3"], "num_layers must be 1 or 2, got 3"),
        (["digits", "--baseline", "leave-one-out", "--num-particles", "1"], "num_particles=1 must be >= 2"),
        (["digits", "--estimator", "balanced", "--baseline", "neural"], "baseline neural does not apply"),
        (
            ["digits", "--estimator", "balanced", "--assignment", "dependent-rounding"],
            "DependentRounding has no tractable joint log_prob",
        ),
        (["piecewise", "--num-layers", "2"], "the piecewise task has one layer"),
        (["letters"], "Invalid value"),
    ],
)
def test_bad_options_give_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["fit", *arguments, "--out", str(tmp_path / "new")])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split()) + " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "new").exists()
