"""The stages of the study, and the runs of each."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from inference.routing_study.evaluations import steps_at_equal_compute
from inference.routing_study.task import Task
from inference.study.settings import SeedsRun


class Stage(StrEnum):
    """
    What a run is for.

    * gate: whether the task depends on routing.
    * tuning: which setting of an arm is the best.
    * final: that setting on the seeds that are reported.
    * balance: of some arms the best setting of the other kind, with or without a load-balancing loss, on these seeds.
    * compute: as final, with so many steps that every arm evaluates as many experts.
    """

    GATE = "gate"
    TUNING = "tuning"
    FINAL = "final"
    BALANCE = "balance"
    COMPUTE = "compute"


#: no seed of a stage that decides anything is one that is reported
FIRST_SEED = {Stage.GATE: 20_000, Stage.TUNING: 10_000, Stage.FINAL: 0, Stage.BALANCE: 0, Stage.COMPUTE: 0}

#: arms that the gate holds against each other: the better of the first two must be ahead of the last
GATE_ARMS = ("oracle", "exact-marginal", "frozen-router")

#: arms that run both with and without a load-balancing loss on the seeds that are reported
BOTH_WAYS = ("switch", "top-2-gates", "independent", "dependent-rounding-mixture-bound")


@dataclass(frozen=True)
class Choice:
    """
    The best setting of an arm on a task.

    :param served: the best way to serve it.
    """

    learning_rate: float
    load_balancing: float
    served: str


@dataclass(frozen=True)
class Cell:
    """A run of a stage: an arm at one setting, all seeds side by side."""

    stage: Stage
    task: Task
    run: SeedsRun


def gate_cells(task: Task) -> list[Cell]:
    """Every learning rate, no load-balancing loss, judged on validation data."""
    arms = [arm for arm in GATE_ARMS if task.has_oracle or arm != "oracle"]
    settings = [(arm, rate, 0.0) for arm in arms for rate in task.rates]
    return _cells(Stage.GATE, task, settings)


def tuning_cells(task: Task, arms: Iterable[str]) -> list[Cell]:
    """Every setting of every arm, judged on validation data."""
    return _cells(Stage.TUNING, task, [(arm, *setting) for arm in arms for setting in task.settings_of(arm)])


def final_cells(task: Task, choices: dict[str, Choice]) -> list[Cell]:
    """
    :param choices: by arm.
    """
    return _cells(Stage.FINAL, task, _settings(choices))


def balance_cells(task: Task, others: dict[str, Choice]) -> list[Cell]:
    """
    :param others: of the arms :data:`BOTH_WAYS`, the best settings of the kind that was not chosen.
    """
    return _cells(Stage.BALANCE, task, _settings(others))


def compute_cells(task: Task, choices: dict[str, Choice]) -> list[Cell]:
    """Arms of one expert have these rows among the final ones."""
    fewer = {arm: choice for arm, choice in choices.items() if steps_at_equal_compute(task, arm) < task.num_steps}
    return _cells(Stage.COMPUTE, task, _settings(fewer))


def _settings(choices: dict[str, Choice]) -> list[tuple[str, float, float]]:
    return [(arm, choice.learning_rate, choice.load_balancing) for arm, choice in choices.items()]


def _cells(stage: Stage, task: Task, settings: list[tuple[str, float, float]]) -> list[Cell]:
    num_seeds = {Stage.GATE: task.num_gate_seeds, Stage.TUNING: task.num_tuning_seeds}.get(stage, task.num_seeds)
    judged_on = "validation" if stage in (Stage.GATE, Stage.TUNING) else "test"
    return [
        Cell(
            stage,
            task,
            task.make(
                arm,
                rate,
                weight,
                task.capacity_factor,
                FIRST_SEED[stage],
                judged_on=judged_on,
                num_seeds=num_seeds,
                num_steps=steps_at_equal_compute(task, arm) if stage is Stage.COMPUTE else task.num_steps,
            ),
        )
        for arm, rate, weight in settings
    ]
