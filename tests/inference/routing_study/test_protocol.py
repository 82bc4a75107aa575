"""Gate, tuning and the seeds that are reported."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from inference.routing_study.gate import gates
from inference.routing_study.protocol import conduct
from inference.routing_study.schema import check
from inference.routing_study.task import Task, learns_to_route
from inference.routing_study.tasks import FEW, TASKS, reduced
from inference.study import runner
from inference.study.arms import all_arms
from inference.study.cache import Cache, Record
from inference.study.settings import Run
from tests.inference.routing_study.conftest import Memory
from tests.inference.routing_study.stand_in import ARMS, BEST_RATE, BEST_WEIGHT, COSTS, record, task

Study = Callable[..., pd.DataFrame]


def test_every_stage_is_in_the_table(table: pd.DataFrame) -> None:
    check(table)
    stages = {stage: set(rows.arm) for stage, rows in table.groupby("stage")}
    assert stages["gate"] == {"oracle", "exact-marginal", "frozen-router"}
    assert stages["tuning"] == stages["final"] == set(ARMS)
    assert stages["balance"] == {"switch", "top-2-gates", "dependent-rounding-mixture-bound"}
    several = {name for name in ARMS if name.endswith("bound")}
    assert stages["compute"] == {"exact-marginal", "top-2-gates", *several}


def test_no_seed_that_decides_is_one_that_is_reported(table: pd.DataFrame) -> None:
    seeds = {stage: set(rows.seed) for stage, rows in table.groupby("stage")}
    assert seeds["final"] == seeds["compute"] == seeds["balance"] == set(range(8))
    assert len(seeds["tuning"]) == 4
    assert not seeds["gate"] & seeds["tuning"]
    assert not (seeds["gate"] | seeds["tuning"]) & seeds["final"]
    deciding = table.stage.isin(["gate", "tuning"])
    assert set(table[deciding].judged_on) == {"validation"}
    assert set(table[~deciding].judged_on) == {"test"}


def test_the_best_setting_and_way_to_serve_run_on_all_seeds(table: pd.DataFrame) -> None:
    final = table.query("stage == 'final'")
    learnt = final[final.arm.map(learns_to_route)]
    assert set(learnt.learning_rate) == {BEST_RATE}
    assert set(learnt.load_balancing) == {BEST_WEIGHT}
    chosen = final[final.chosen].set_index("arm").served
    assert set(chosen["skip"]) == {"2"}  # serving by all is better, but costs more than two experts
    assert set(chosen["exact-marginal"]) == {"all"}
    assert len(final[final.chosen]) == 8 * len(ARMS)


@pytest.mark.parametrize("tasks", [TASKS, reduced()], ids=["whole", "reduced"])
def test_all_arms_have_as_many_settings(tasks: tuple[Task, ...]) -> None:
    for each in tasks:
        arms = each.chosen_arms()
        if each.arms == ():  # the gate alone
            assert not arms
            continue
        assert set(arms) <= set(all_arms())
        numbers = {arm: each.settings_of(arm) for arm in arms}
        assert len({len(set(settings)) for settings in numbers.values()}) == 1
        assert all(learns_to_route(arm) or {weight for _, weight in numbers[arm]} == {0.0} for arm in arms)
        assert {"frozen-router", "exact-marginal"} <= set(arms)


def test_a_task_without_arms_has_its_gate_alone(study: Study) -> None:
    table = study(task(arms=()))
    check(table)
    assert set(table.stage) == {"gate"}
    (gate,) = gates(table).values()
    assert gate.passed


def test_at_equal_compute_arms_evaluate_as_many_experts(table: pd.DataFrame) -> None:
    steps = table[table.stage == "compute"].groupby("arm").num_steps.first()
    assert steps["exact-marginal"] == 10
    assert steps["top-2-gates"] == steps["dependent-rounding-mixture-bound"] == 20
    assert set(table[table.stage == "final"].num_steps) == {40}


def test_a_task_that_does_not_depend_on_routing_is_left(study: Study) -> None:
    table = study(task(), costs=COSTS | {"frozen-router": 0.82, "oracle": 0.9})
    check(table)
    assert set(table.stage) == {"gate"}
    (gate,) = gates(table).values()
    assert not gate.passed
    assert abs(gate.errors) < 5


def test_the_gate_takes_the_better_of_oracle_and_exact_marginal(study: Study) -> None:
    gate = gates(study(task()))["4 pieces of a line"]
    assert (gate.better, gate.seeds, gate.passed) == ("oracle", 8, True)
    assert gate.ahead == pytest.approx(COSTS["frozen-router"] - COSTS["oracle"])
    gate = gates(study(replace(task(), num_gate_seeds=6), costs=COSTS | {"oracle": 2.0}))["4 pieces of a line"]
    assert gate.better == "exact-marginal"


def test_an_interrupted_study_goes_on(tmp_path: Path, trained: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    first = conduct([task()], Memory())
    number = len(trained)
    trained.clear()
    stub, left = runner.train, [number - 10]

    def dies(run: Run) -> Record:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return stub(run)

    monkeypatch.setattr(runner, "train", dies)
    with pytest.raises(KeyboardInterrupt):
        conduct([task()], cache)
    monkeypatch.setattr(runner, "train", stub)
    again = conduct([task()], cache)
    assert len(trained) == number
    pd.testing.assert_frame_equal(first, again)


def test_further_arms_use_the_runs_of_earlier_ones(trained: list[Run]) -> None:
    cache = Memory()
    conduct([task(arms=ARMS[:5])], cache)
    number = len(trained)
    conduct([task()], cache)
    assert len(set(trained)) == len(trained) > number


def test_settings_of_a_task_must_be_as_many_for_all() -> None:
    with pytest.raises(ValueError, match="between must be 2 learning rates"):
        task(between=(0.02,))
    with pytest.raises(ValueError, match="weights must be 0 and then positive ones"):
        task(weights=(0.1, 1.0))


def test_the_stand_in_has_the_costs_that_it_says() -> None:
    found = record(task().make("skip", BEST_RATE, BEST_WEIGHT, num_seeds=8)).metrics["robust, 2"]
    assert sum(found) / 8 == pytest.approx(COSTS["skip"])
    assert set(FEW) <= set(all_arms())
