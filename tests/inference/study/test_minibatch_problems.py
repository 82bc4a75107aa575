"""Every arm takes a step on digits in regimes and on a table; data and models have the shapes of a stack."""

import pytest
import torch

from inference.study import minibatch_problems
from inference.study.minibatch_problems import error_of_mean, regimes_problem, table_problem
from inference.study.parts import FEW_REGIMES, REGIMES, TABLES
from inference.study.settings import RegimesRun, Run, TableRun
from inference.study.training import train
from models.tables import TableData

ROWS = 300


def tiny_table(name: str, seed: int) -> TableData:
    """A table that needs no package."""
    torch.manual_seed(seed)
    train, validation, test = ((torch.randn(n, 5), torch.randn(n)) for n in (ROWS, 30, 40))
    return TableData(train, validation, test, torch.arange(30), torch.arange(40))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minibatch_problems, "table_data", tiny_table)


def check(run: Run, num_test: int) -> None:
    record = train(run)
    assert record.stopped_at is None
    assert all(len(values) == 2 for values in record.metrics.values())
    assert torch.tensor(record.metrics["nll"]).isfinite().all()
    assert any(name.startswith("nll, ") for name in record.metrics)
    assert train(run).metrics == record.metrics


@pytest.mark.parametrize("arm", REGIMES)
def test_every_arm_takes_a_step_in_regimes(arm: str) -> None:
    check(RegimesRun(arm, 0.1, 0.1, num_regimes=2, num_seeds=2, num_steps=1, batch_size=32), 600)


@pytest.mark.parametrize("arm", TABLES)
@pytest.mark.usefixtures("table")
def test_every_arm_takes_a_step_on_a_table(arm: str) -> None:
    check(TableRun(arm, 0.1, 0.1, 1.25, num_seeds=2, num_steps=1, batch_size=64, num_experts=4), 40)


def test_regimes_have_a_seed_each() -> None:
    problem = regimes_problem(RegimesRun("oracle", 0.1, 0.0, num_regimes=3, num_seeds=2))
    x, y = problem.train
    assert x.shape == (2, 3 * 1197, 67)
    assert y.shape == (2, 3 * 1197)
    assert not x[0].equal(x[1])
    assert problem.posterior()(x[:, :5], y[:, :5]).shape == (2, 5, 3)
    assert problem.cost_baseline()(x[:, :5]).shape == (2, 5)
    assert problem.identity(x).unique().numel() > 100
    assert set(FEW_REGIMES) <= set(REGIMES)


@pytest.mark.usefixtures("table")
def test_tables_have_a_seed_each() -> None:
    problem = table_problem(TableRun("switch", 0.1, 0.0, num_seeds=3, num_experts=4))
    x, y = problem.train
    assert x.shape == (3, ROWS, 5)
    assert problem.rows is not None
    assert problem.rows.shape == problem.test[1].shape == (3, 40)
    assert problem.posterior()(x[:, :5], y[:, :5]).shape == (3, 5, 4)
    assert problem.cost_baseline()(x[:, :5]).shape == (3, 5)
    assert problem.oracle is None


def test_the_error_of_a_table_is_that_of_the_mean() -> None:
    out = torch.tensor([[[1.0, 9.0], [3.0, -9.0]]])
    assert error_of_mean(out, torch.zeros(1, 2)).item() == pytest.approx(5**0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RegimesRun("oracle", 0.1, 0.0, num_regimes=1), "num_regimes must be at least 2, got 1"),
        (lambda: TableRun("switch", 0.1, 0.0, table="iris"), "table must be one of diamonds, flights, got 'iris'"),
        (lambda: TableRun("switch", 0.1, 0.0, batch_size=0), "batch_size must be a positive int, got 0"),
    ],
)
def test_bad_settings_are_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
