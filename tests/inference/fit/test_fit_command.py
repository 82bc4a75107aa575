"""The command ``fit`` end to end, small; its losses; its pictures' numbers."""

import json
import math
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from inference.cli import app
from inference.runs.checkpoint import load_checkpoint
from inference.runs.run_folder import RunFolder
from inference.tasks import Digits, ModelOptions, Piecewise
from inference.training.batches import Minibatches
from inference.training.evaluate import evaluate
from inference.training.objective import batch_loss
from inference.training.run import Fit, FitOptions, run_fit
from models.assignments import assignments_of
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
        ("gumbel-matching", "balanced", "leave-one-out", 2),
        ("skip", "balanced", "neural", 2),
    ],
)
def test_every_kind_of_option_trains(assignment: str, estimator: str, baseline: str, num_layers: int) -> None:
    model = ModelOptions(assignment, baseline, num_layers=num_layers)
    particles = 2 if baseline == "leave-one-out" else 1
    task = Digits()
    options = FitOptions(2, 500, 1e-2, model, estimator, num_particles=particles, sample=True)
    seen: list = []
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
    model = task.build(ModelOptions("skip", capacity_factor=1.0))
    _, (use,) = evaluate(task, model, task.test, sample=False)
    x, _ = task.test
    (z,) = assignments_of(model, x)
    for group in range(2):
        members = [i for i in range(50) if (float(x[i]) >= 0.5) == bool(group)]
        for column in range(3):
            count = sum((int(z[i]) if z[i] >= 0 else 2) == column for i in members)
            assert use[group, column] == pytest.approx(count / len(members))


def test_several_experts_train_by_the_bound_and_are_shown(tmp_path: Path) -> None:
    arguments = ["digits", "--estimator", "mixture", "--num-selected", "2", "--num-epochs", "3", "--out", str(tmp_path)]
    code, output = run(*arguments, "--capacity-factor", "1.0", "--batch-size", "100")
    assert code == 0, output
    table = pd.read_csv(tmp_path / "fit_digits.csv")
    assert (table["accuracy, served"] > 0.8).all()
    assert (table["drop rate"] == 0).all()
    steps = pd.read_csv(RunFolder(tmp_path).seed(0).metrics).dropna()
    assert steps["effective_experts/y"].between(1, 2).all()
    assert steps["responsibility_entropy/y"].between(0, math.log(2)).all()
    loads = steps[[f"load/assignment/{expert}" for expert in range(4)]]
    assert (loads.sum(axis=1).isin([194, 200])).all()  # two for each of 100 datapoints; the last batch has 97
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    code, output = run("digits", "--resume", "--out", str(tmp_path))
    assert code == 0, output


def test_two_layers_with_several_experts_in_the_second(tmp_path: Path) -> None:
    """The first has one expert for each datapoint, and a baseline; both are served as they were trained."""
    arguments = ["digits", "--estimator", "mixture", "--num-selected", "2", "--num-layers", "2", "--num-epochs", "4"]
    code, output = run(*arguments, "--assignment", "skip", "--out", str(tmp_path))
    assert code == 0, output
    table = pd.read_csv(tmp_path / "fit_digits.csv")
    assert (table["accuracy, served"] > 0.8).all()
    steps = pd.read_csv(RunFolder(tmp_path).seed(0).metrics).dropna()
    processed = steps[[f"load/first/{expert}" for expert in range(4)]].sum(axis=1)
    assert (processed <= 128).all()
    selected = steps[[f"load/assignment/{expert}" for expert in range(4)]].sum(axis=1)
    assert (selected > 1.2 * processed).all()
    _, state = load_checkpoint(RunFolder(tmp_path).seed(0).checkpoint)
    assert list(state["loss"]) == ["first"]
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert shown.exit_code == 0, shown.output


def test_piecewise_command(tmp_path: Path) -> None:
    code, output = run("piecewise", "--num-epochs", "3", "--serve", "sample", "--out", str(tmp_path))
    assert code == 0, output
    assert "RMSE, served" in output
    assert (tmp_path / "fit_piecewise_use.png").stat().st_size > 5_000


def test_json_is_all_that_stdout_has_and_says_what_the_table_says(tmp_path: Path) -> None:
    arguments = ["piecewise", "--num-epochs", "2", "--dtype", "float64", "--num-seeds", "2", "--seed", "5", "--json"]
    result = CliRunner().invoke(app, ["fit", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["out"] == str(tmp_path)
    table = pd.read_csv(tmp_path / "fit_piecewise.csv", index_col="seed")
    table = table.astype(object).where(table.map(math.isfinite), None)
    assert said["metrics"] == {str(seed): row.to_dict() for seed, row in table.iterrows()}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["options"] == said["options"]
    assert (said["options"]["learning_rate"], said["options"]["num_particles"]) == (0.1, 1)


def test_every_seed_has_a_folder_and_the_precision_asked_for(tmp_path: Path) -> None:
    before = torch.get_default_dtype()
    arguments = ["piecewise", "--num-epochs", "2", "--dtype", "float64", "--num-seeds", "2", "--assignment", "skip"]
    code, output = run(*arguments, "--out", str(tmp_path))
    assert code == 0, output
    assert torch.get_default_dtype() == before
    folders = RunFolder(tmp_path).seeds()
    assert list(folders) == [0, 1]
    weights = []
    for folder in folders.values():
        _, state = load_checkpoint(folder.checkpoint)
        weights.append(state["trainer"]["module"]["router.weight"])
        assert weights[-1].dtype == torch.float64
        assert len(pd.read_csv(folder.metrics)) == 6
        assert len(pd.read_csv(folder.epochs)) == 2
    assert not torch.equal(*weights)
    code, output = run(*arguments, "--num-seeds", "1", "--overwrite", "--out", str(tmp_path))
    assert code == 0, output
    assert not folders[1].checkpoint.exists()


def test_the_table_of_steps_has_what_a_report_needs(tmp_path: Path) -> None:
    arguments = ["digits", "--num-epochs", "1", "--batch-size", "100", "--num-layers", "2", "--assignment", "skip"]
    code, output = run(*arguments, "--num-experts", "3", "--out", str(tmp_path))
    assert code == 0, output
    table = pd.read_csv(RunFolder(tmp_path).seed(0).metrics)
    assert list(table.step) == [*range(1, 13)]
    assert table.loss.notna().all()
    looks = table.dropna()
    assert list(looks.step) == [1, 11]
    for site in ("first", "assignment"):
        loads = looks[[f"load/{site}/{expert}" for expert in range(3)]].to_numpy()
        assert looks[f"max_mean_load/{site}"].to_numpy() == pytest.approx(3 * loads.max(1) / loads.sum(1))
        assert (loads.sum(1) <= 100).all()
        assert looks[f"router_entropy/{site}"].between(0, math.log(3)).all()
    kept = (1 - looks["drop_rate/first"]) * (1 - looks["drop_rate/assignment"])
    assert (1 - looks.drop_rate).to_numpy() == pytest.approx(kept.to_numpy())
    assert looks.weight_ess.between(0, 1).all()
    assert (table.seconds.diff().dropna() > 0).all()
    assert (table.datapoints_per_second > 0).all()


def test_ctrl_c_leaves_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_step = Fit.step

    def step(fit: Fit) -> dict[str, float]:
        if fit.step_count == 3:
            signal.raise_signal(signal.SIGINT)
        return real_step(fit)

    monkeypatch.setattr(Fit, "step", step)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where a shell runs tests behind
    result = CliRunner().invoke(
        app, ["fit", "piecewise", "--num-epochs", "9", "--num-seeds", "2", "--out", str(tmp_path)]
    )
    assert result.exit_code == 130
    assert result.stderr.startswith("stopped by SIGINT after step 4; the checkpoint is written, go on with: python -m")
    assert load_checkpoint(RunFolder(tmp_path).seed(0).checkpoint)[1]["trainer"]["num_steps"] == 4
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


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
    shifted = batch_loss(mixture, "balanced", "decaying")
    plain = batch_loss(mixture, "balanced", "none")
    draws = {}
    for loss in (shifted, plain):
        rows = []
        mixture.baseline = {"use_decaying_avg_baseline": True} if loss is shifted else None
        for _ in range(300):
            value = loss(*data)
            gradient = torch.autograd.grad(value, mixture.router.weight)[0]
            rows.append(torch.cat([value.detach().view(1), gradient.flatten()]))
        draws[loss] = torch.stack(rows[20:]).double()
    difference = draws[shifted] - draws[plain]
    assert standard_errors_off(difference, torch.zeros_like(difference[0])) < 5
    assert (draws[shifted].var(0)[1:] < draws[plain].var(0)[1:]).all()
