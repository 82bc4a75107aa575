"""Where something is chosen, runs are judged on validation data: the same training, other data."""

import pytest
import torch

from inference.study import minibatch_problems
from inference.study.minibatch_problems import regimes_problem, table_problem
from inference.study.problems import Problem, digits_problem, pieces_problem, toy_problem
from inference.study.settings import DigitsRun, PiecesRun, RegimesRun, Run, TableRun, ToyRun
from tests.inference.study.test_minibatch_problems import tiny_table

SEEDS = {"num_seeds": 2}
TASKS = {
    "lines": (toy_problem, lambda part: ToyRun("skip", 0.1, 0.0, judged_on=part, **SEEDS)),
    "pieces": (pieces_problem, lambda part: PiecesRun("skip", 0.1, 0.0, judged_on=part, **SEEDS)),
    "digits": (digits_problem, lambda part: DigitsRun("skip", 0.1, 0.0, judged_on=part)),
    "regimes": (regimes_problem, lambda part: RegimesRun("skip", 0.1, 0.0, judged_on=part, num_regimes=2, **SEEDS)),
    "table": (table_problem, lambda part: TableRun("skip", 0.1, 0.0, judged_on=part, **SEEDS)),
}


@pytest.mark.parametrize("task", TASKS)
def test_training_is_the_same_and_the_data_are_others(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minibatch_problems, "table_data", tiny_table)
    make, run = TASKS[task]
    test, validation = (make(run(part)) for part in ("test", "validation"))
    assert isinstance(test, Problem)
    for one, other in zip(test.train, validation.train):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(test.mixture.parameters(), validation.mixture.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert validation.test[0].shape != test.test[0].shape or not torch.equal(validation.test[0], test.test[0])


def test_another_part_is_refused() -> None:
    with pytest.raises(ValueError, match="judged_on must be validation or test, got 'train'"):
        Run("skip", 0.1, 0.0, judged_on="train")
