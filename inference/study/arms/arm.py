"""What an arm is."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum

from inference.registry.entries import Evaluations
from inference.registry.names import spelling
from inference.study.learners import Learner
from inference.study.problems import Problem
from inference.study.settings import Run


class Group(StrEnum):
    """What an arm aims at, in the order of tables and pictures."""

    ROUTER = "router objective, unbiased"
    TWIN = "router objective, biased"
    BALANCED = "balanced objective, unbiased"
    MARGINAL = "marginal likelihood, all experts"
    MIXTURE = "mixture bound, two experts"
    GATED = "gated objective, biased"
    OWN = "sparse, deterministic"
    DENSE = "dense, deterministic"
    FIXED = "routing not learnt"


@dataclass(frozen=True)
class Arm:
    """
    One way to train.

    :param label: how tables and pictures call it; its name is that, as one types it.
    :param objective: what its gradient is exact for, or aims at.
    :param build: from a problem, whose mixture it may keep, to a learner.
    :param origin: the plugin that it is of.
    :param evaluations: of experts that a step of training pays for, for every datapoint, what capacity drops included.
    :param looks_ahead: whether later datapoints change what it puts out for a datapoint, when it serves too.
    :param needs_oracle: whether it is for tasks only where somebody knows the right experts.
    :param needs_hidden: whether it is for tasks only whose experts have hidden units.
    """

    label: str
    group: Group
    objective: str
    build: Callable[[Problem], Learner]
    origin: str = ""
    _: KW_ONLY
    evaluations: Evaluations = 1
    looks_ahead: bool = False
    needs_oracle: bool = False
    needs_hidden: bool = False

    @property
    def name(self) -> str:
        return spelling(self.label)

    def is_for(self, run: Run) -> bool:
        """:returns: whether the task of a run has what the arm needs."""
        return (run.has_oracle or not self.needs_oracle) and (run.has_hidden or not self.needs_hidden)
