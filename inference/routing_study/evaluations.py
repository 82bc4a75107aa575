"""How many experts an arm evaluates for a datapoint, and what that makes of the number of steps."""

from inference.routing_study.tasks import Task
from inference.study.arms import Group, all_arms

#: what evaluates all experts in training, though its group does not say so
DENSE = ("exact-gradient", "gumbel-softmax", "densemixer", "soft-moe")
#: and what evaluates two
OF_TWO = ("independent-leave-one-out", "independent-pairs", "top-2-gates")


def evaluations(arm: str, num_experts: int) -> int:
    """:returns: expert evaluations in a step of training, per datapoint."""
    group = all_arms()[arm].group
    if arm == "smear":
        return 1
    if arm in DENSE or group in (Group.MARGINAL, Group.DENSE):
        return num_experts
    return 2 if arm in OF_TWO or group is Group.MIXTURE else 1


def steps_at_equal_compute(task: Task, arm: str) -> int:
    """:returns: steps in which an arm evaluates as many experts as one of one expert does in the steps of the task."""
    return max(1, task.num_steps // evaluations(arm, task.num_experts))
