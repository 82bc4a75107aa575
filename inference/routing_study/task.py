"""What a task of the study of routing is: its runs, its arms, and what each of them gets."""

from collections.abc import Callable
from dataclasses import dataclass

from inference.study.arms import Group, all_arms
from inference.study.settings import SeedsRun

#: what every task is framed by, where it exists
LINES = ("oracle", "frozen-router", "one-expert", "one-wide-expert", "hash", "exact-marginal")


@dataclass(frozen=True)
class Cost:
    """
    What a step of an average arm takes, in milliseconds of processor time: ``step + seed * num_seeds``.

    :param data: seconds of a run before its first step.
    """

    step: float
    seed: float
    data: float = 0.0


@dataclass(frozen=True)
class Task:
    """
    One task, and what every arm gets on it.

    :param make: a run from arm, learning rate, load-balancing weight, capacity factor and seed, with ``num_seeds``,
        ``num_steps`` and ``judged_on``.
    :param measure: what arms are judged by, a cost: nll, robust or error.
    :param num_experts: k.
    :param num_steps: of an arm that evaluates one expert for a datapoint, and at equal numbers of steps of all.
    :param rates: learning rates of every arm, with every one of
    :param weights: the weights of the load-balancing loss, the first of which is 0.
    :param between: further learning rates of arms without a router that learns, for which a weight means nothing, so
        that they have as many settings as the others.
    :param num_seeds: that are reported.
    :param arms: None for all; none of them where the gate is all that the study asks of the task.
    """

    make: Callable[..., SeedsRun]
    measure: str
    num_experts: int
    num_steps: int
    rates: tuple[float, ...]
    weights: tuple[float, ...]
    between: tuple[float, ...]
    cost: Cost
    arms: tuple[str, ...] | None = None
    capacity_factor: float = 1.0
    num_seeds: int = 8
    num_tuning_seeds: int = 4
    num_gate_seeds: int = 8

    def __post_init__(self) -> None:
        if self.weights[0] != 0 or not all(weight > 0 for weight in self.weights[1:]):
            raise ValueError(f"weights must be 0 and then positive ones, got {self.weights!r}")
        wanted = len(self.rates) * (len(self.weights) - 1)
        if len(self.between) != wanted:
            raise ValueError(
                f"between must be {wanted} learning rates, as every arm has as many settings, got {self.between!r}"
            )

    @property
    def label(self) -> str:
        """The task in words."""
        return self._any_run().label

    @property
    def has_oracle(self) -> bool:
        """Whether anybody knows the right experts."""
        return self._any_run().has_oracle

    def _any_run(self) -> SeedsRun:
        return self.make("oracle", self.rates[0], 0.0)

    def chosen_arms(self, asked: tuple[str, ...] | None = None) -> list[str]:
        """
        The arms of the task in the order of tables, with those of plugins.

        :param asked: None for the task's own; else these, and the lines that frame it.
        """
        if self.arms == ():
            return []
        known = all_arms()
        own = tuple(known) if self.arms is None else self.arms
        wanted = own if asked is None else (*asked, *(name for name in LINES if name in own))
        return [
            name
            for name, arm in known.items()
            if (name in wanted or (asked is None and arm.origin)) and arm.is_for(self._any_run())
        ]

    def settings_of(self, arm: str) -> list[tuple[float, float]]:
        """:returns: learning rates and weights among which an arm's are chosen; equally many for all arms."""
        if learns_to_route(arm):
            return [(rate, weight) for weight in self.weights for rate in self.rates]
        return [(rate, 0.0) for rate in (*self.rates, *self.between)]


def learns_to_route(arm: str) -> bool:
    """:returns: whether an arm has a router that learns, so that a load-balancing loss can do something."""
    return all_arms()[arm].group is not Group.FIXED
