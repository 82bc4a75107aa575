"""Parts of a problem: training is the same whatever is judged, and seeds are other draws."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from inference.study import minibatch_problems
from inference.study.problems import Problem
from inference.study.settings import DigitsRun, PiecesRun, RegimesRun, Run, TableRun, ToyRun
from inference.study.training import problem_of, train
from tests.inference.study.test_minibatch_problems import tiny_table

RUNS = (
    ToyRun("skip", 0.1, 0.0, num_seeds=2, num_steps=3),
    PiecesRun("skip", 0.1, 0.0, num_seeds=2, num_steps=3),
    DigitsRun("skip", 0.1, 0.0, num_epochs=1),
    RegimesRun("skip", 0.1, 0.0, num_seeds=2, num_steps=2, num_regimes=2),
    TableRun("skip", 0.1, 0.0, num_seeds=2, num_steps=2, num_experts=4),
)
OF_EACH_TASK = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.task)


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minibatch_problems, "table_data", tiny_table)


def start(problem: Problem) -> list[Tensor]:
    """Data to train on and parameters."""
    return [*problem.train, *problem.mixture.parameters()]


@OF_EACH_TASK
def test_what_is_judged_changes_nothing_that_is_trained(run: Run) -> None:
    on_test, on_validation = (problem_of(replace(run, judged_on=part)) for part in ("test", "validation"))
    assert all(map(torch.equal, start(on_test), start(on_validation)))
    assert on_test.held_out is on_test.test
    assert on_validation.held_out is on_validation.validation
    x, y = on_validation.held_out
    assert x.shape[:-1] == y.shape
    assert not torch.equal(x, on_test.held_out[0])


@OF_EACH_TASK
def test_no_datapoint_is_in_two_parts(run: Run) -> None:
    problem = problem_of(run)
    for seed in range(run.num_seeds if hasattr(run, "num_seeds") else 1):
        parts = [x if x.dim() == 2 else x[seed] for x, _ in (problem.train, problem.validation, problem.test)]
        rows = [{*map(tuple, part.tolist())} for part in parts]
        assert not rows[0] & rows[1]
        assert not rows[0] & rows[2]
        assert not rows[1] & rows[2]


@OF_EACH_TASK
def test_other_seeds_are_other_draws(run: Run) -> None:
    first, other = problem_of(run), problem_of(replace(run, seed=1000))
    assert not any(map(torch.equal, first.mixture.parameters(), other.mixture.parameters()))
    if isinstance(run, DigitsRun):  # their split is always the same
        assert first.test[0].equal(other.test[0])
        return
    for model in range(2):
        for mine, theirs in ((first, other), (first, first)):
            for place in range(2):
                same = mine is theirs and model == place
                assert mine.train[0][model].equal(theirs.train[0][place]) == same


@OF_EACH_TASK
def test_a_run_is_measured_on_the_part_that_it_names(run: Run) -> None:
    records = [train(replace(run, judged_on=part)) for part in ("test", "validation")]
    assert [record.settings["judged_on"] for record in records] == ["test", "validation"]
    for name, values in records[0].metrics.items():
        assert name.startswith("beyond") or values != records[1].metrics[name], name


def test_the_truth_is_that_of_the_judged_part() -> None:
    problem = problem_of(replace(RUNS[1], judged_on="validation"))
    assert problem.truth is not None
    # The entropy of a normal distribution with a standard deviation of 0.1.
    expected = 0.5 * (1 + torch.tensor(2 * torch.pi * 0.01).log())
    assert (problem.truth(problem.held_out) - expected).abs().max() < 5 * (0.5 / 1000) ** 0.5


def test_a_run_of_no_known_kind_is_named() -> None:
    class Other(Run):
        task = "other"

    with pytest.raises(NotImplementedError, match="no problem is known for Other"):
        problem_of(Other("skip", 0.1, 0.0))
