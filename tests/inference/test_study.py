"""The study end to end, small; and that each arm trains on the gradient it names."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from inference.cli import app
from inference.study import ARMS, Arm, Settings, arm_loss, contrasts, run_study, summary
from models.piecewise import piecewise_data, piecewise_mixture
from prob_moe.distributions import IndependentRouting
from tests.estimators.replicas import standard_errors_off

# Stacks of seeds give many draws of the same gradient: the same data and parameters in every one.
STACK = 3000


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_unbiased_arms_are_unbiased_and_biased_twins_are_not(arm: Arm) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        data = piecewise_data((1,), num_datapoints=20, break_at=0.3)
        data = type(data)(*(tensor.expand(STACK, *tensor.shape[1:]) for tensor in data))
        mixture = piecewise_mixture(IndependentRouting, (STACK,), noise=0.5)
        with torch.no_grad():
            for parameter in mixture.parameters():
                parameter.copy_(parameter[:1].expand_as(parameter))
            mixture.router.bias += torch.tensor([0.5, -0.5])
        parameters = list(mixture.parameters())
        exact = torch.autograd.grad(mixture.router_objective(*data).sum() / 20, parameters)
        gradients = torch.autograd.grad(-arm_loss(arm, mixture, data)(), parameters)
    finally:
        torch.set_default_dtype(torch.float32)
    off = max(standard_errors_off(g, e[0]) for g, e in zip(gradients, exact))
    assert (off < 5) == arm.weighted


def test_study_trains_every_arm_from_the_same_start() -> None:
    data, results = run_study(Settings(num_seeds=3, num_steps=20, eval_every=10))
    curves = pd.concat([result.curve for result in results])
    assert len(curves) == len(ARMS) * 3 * 3
    start = curves[curves.step == 0].pivot(index="seed", columns="arm", values="nll")
    assert (start.nunique(axis=1) == 1).all()
    end = curves[curves.step == 20].pivot(index="seed", columns="arm", values="nll")
    assert (end.nunique(axis=1) == len(ARMS)).all()
    assert (end.mean() < start.mean()).all()
    table = summary(results)
    assert list(table.arm) == [arm.name for arm in ARMS]
    assert data.y.shape == (3, 100)


def test_contrasts_are_paired_over_seeds() -> None:
    """The same spread over seeds in both arms cancels."""
    rows = [
        {"arm": arm.name, "step": step, "seed": seed, "nll": 100.0 * seed + index}
        for index, arm in enumerate(ARMS)
        for step in (0, 10)
        for seed in range(4)
    ]
    table = contrasts(pd.DataFrame(rows)).set_index(["arm", "minus"])
    assert table.nll["skip", "Gumbel-Matching"] == -1
    assert (table.nll_se == 0).all()


def test_study_command_writes_table_and_pictures(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["study", "--num-seeds", "2", "--num-steps", "3", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv(tmp_path / "study.csv")) == len(ARMS)
    for picture in ("study_curves.png", "study_fits.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--num-seeds", "0", "num_seeds must be a positive int, got 0"),
        ("--break-at", "2", "break_at must lie inside (0, 1), got 2.0"),
        ("--learning-rate", "-1", "learning_rate must be positive"),
        ("--capacity-factor", "0.5", "exceed"),
    ],
)
def test_bad_options_give_one_line_and_exit_code_2(tmp_path: Path, option: str, value: str, message: str) -> None:
    arguments = ["study", "--num-seeds", "2", "--num-steps", "2", "--out", str(tmp_path / "new"), option, value]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
