"""Fits whose batches are cut into groups, on one process."""

import pytest
from typer.testing import CliRunner

from inference.cli import app
from inference.tasks import ModelOptions, Piecewise
from inference.training.run import Fit, FitOptions
from inference.training.sharing import InGroups
from inference.training.torchrun import restarted
from models.digits import digits_mixture
from prob_moe.distributions import CapacitySkip


def fit_of(num_groups: int | None = 4) -> Fit:
    options = FitOptions(2, 100, 0.1, ModelOptions("skip"), num_groups=num_groups)
    return Fit(Piecewise(), options, seed=3)


def test_a_fit_in_groups_goes_on_as_if_nothing_had_happened():
    whole = fit_of()
    losses = [whole.step()["loss"] for _ in range(6)]
    first = fit_of()
    assert [first.step()["loss"] for _ in range(2)] == losses[:2]
    state = first.state_dict()
    second = fit_of()
    second.load_state_dict(state)
    assert [second.step()["loss"] for _ in range(4)] == losses[2:]
    assert "RMSE, served" in second.result().metrics


def test_groups_are_routed_each_by_itself():
    """A capacity for each of them, and other draws than for the batch as one."""
    fit = fit_of()
    row = fit.step()
    recorder = fit._recorder.draws["assignment"]
    assert recorder[1].shape == (4, 1, 25)
    assert sum(row[f"load/assignment/{expert}"] for expert in range(2)) <= 25
    assert fit_of(None).step()["loss"] != row["loss"]


@pytest.mark.parametrize(
    ("options", "environment", "said"),
    [
        ("digits --num-groups 0", {}, "num_groups must be a positive int, got 0"),
        ("digits --num-groups 2 --num-layers 2", {}, "models of one layer of experts on datapoints, got a Stacked"),
        ("digits", {"WORLD_SIZE": "2"}, "2 processes share a batch: give --num-groups, a multiple of 2, got None"),
        ("digits --num-groups 3", {"WORLD_SIZE": "2"}, "give --num-groups, a multiple of 2, got 3"),
        ("digits --timeout 0", {}, "timeout must be a positive number of seconds, got 0.0"),
    ],
)
def test_mistakes_end_with_one_line(options, environment, said, tmp_path, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["fit", *options.split(), "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_restart_by_torchrun_means_resume(monkeypatch):
    assert not restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted()


def test_one_layer_only():
    with pytest.raises(ValueError, match="one layer of experts on datapoints, got a StackedMixture"):
        InGroups(2, 0, None).divide(digits_mixture(CapacitySkip, num_layers=2))
