"""How many experts an arm evaluates for a datapoint, and what that makes of the number of steps."""

from inference.registry.entries import ALL_EXPERTS
from inference.routing_study.task import Task
from inference.study.arms import all_arms


def evaluations(arm: str, num_experts: int) -> int:
    """:returns: expert evaluations in a step of training, per datapoint."""
    said = all_arms()[arm].evaluations
    if isinstance(said, int):
        return said
    # As many rows as slots are fewer than one for a datapoint: no reason for more steps than those of one expert.
    return num_experts if said == ALL_EXPERTS else 1


def steps_at_equal_compute(task: Task, arm: str) -> int:
    """:returns: steps in which an arm evaluates as many experts as one of one expert does in the steps of the task."""
    return max(1, task.num_steps // evaluations(arm, task.num_experts))
