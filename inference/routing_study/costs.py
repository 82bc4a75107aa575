"""What a study will cost, told before it starts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inference.routing_study.evaluations import steps_at_equal_compute
from inference.routing_study.stages import BOTH_WAYS, gate_cells, tuning_cells
from inference.routing_study.task import Cost, Task
from inference.study.cache import Cache


@dataclass(frozen=True)
class Estimate:
    """
    Of one task, as if it passed its gate.

    :param runs: each with all its seeds.
    :param done: of which so many are there already, as far as their settings are known before the tuning.
    :param minutes: of processor time, for those that are not.
    """

    task: str
    runs: int
    done: int
    minutes: float


def estimate(task: Task, arms: Sequence[str], cache: Cache) -> Estimate:
    """
    From the costs that the task states, corrected by what its finished runs took.

    :param arms: of the stages behind the gate.
    """
    known = [*gate_cells(task), *tuning_cells(task, arms)]
    records = [(cell.run, cache.load(cell.run)) for cell in known]
    planned = [(run.num_steps, run.num_seeds) for run, record in records if record is None]
    taken = [(run.num_steps, run.num_seeds, record.seconds) for run, record in records if record is not None]
    both = [arm for arm in BOTH_WAYS if arm in arms]
    further = [task.num_steps] * (len(arms) + len(both))
    further += [steps for arm in arms if (steps := steps_at_equal_compute(task, arm)) < task.num_steps]
    planned += [(steps, task.num_seeds) for steps in further]
    seconds = sum(_seconds(task.cost, *run) for run in planned)
    if taken:
        seconds *= sum(took for *_, took in taken) / sum(_seconds(task.cost, *run) for *run, _ in taken)
    return Estimate(task.label, len(known) + len(further), len(taken), seconds / 60)


def _seconds(cost: Cost, num_steps: int, num_seeds: int) -> float:
    return cost.data * num_seeds / 8 + num_steps * (cost.step + cost.seed * num_seeds) / 1000


def told(estimates: Iterable[Estimate], jobs: int) -> list[str]:
    """
    The estimates in words, a line a task and one for all.

    :param jobs: processes.
    """
    estimates = list(estimates)
    lines = [
        f"{each.task}: {each.runs} runs{f', {each.done} of them done' if each.done else ''}, "
        f"about {each.minutes:.1f} minutes of processor time"
        for each in estimates
    ]
    runs, minutes = sum(each.runs for each in estimates), sum(each.minutes for each in estimates)
    together = f"all: {runs} runs at most, about {minutes:.0f} minutes of processor time"
    return [*lines, f"{together}, {minutes / jobs:.0f} on {jobs} processes" if jobs > 1 else together]
