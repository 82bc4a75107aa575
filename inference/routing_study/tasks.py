"""The tasks of the study of routing, each with its arms, settings and measure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from inference.study.arms import Group, all_arms
from inference.study.language import LanguageRun
from inference.study.regime_settings import DomainsRun, NoisyTagRun, PlantedRun, RotatedRun, TwinsRun
from inference.study.settings import PiecesRun, RegimesRun, SeedsRun, TableRun, ToyRun

#: what every task is framed by, where it exists
LINES = ("oracle", "frozen-router", "one-expert", "one-wide-expert", "hash", "exact-marginal")
#: what is compared first of all
MAIN = (
    "dependent-rounding-mixture-bound",
    "unlimited-rounding-mixture-bound",
    "independent-mixture-bound",
    "independent",
    "skip",
    "switch",
    "top-2-gates",
)
#: and where all arms would take too long
FEW = (*LINES, *MAIN)
#: and where a run takes ten seconds to begin with
FEWEST = (
    "frozen-router",
    "exact-marginal",
    "dependent-rounding-mixture-bound",
    "unlimited-rounding-mixture-bound",
    "independent-mixture-bound",
    "switch",
    "top-2-gates",
)
#: the same as the few with all sides of the claims, and one of every kind
MANY = (
    *FEW,
    "dependent-rounding",
    "gumbel-matching",
    "skip-unweighted",
    "gumbel-matching-unweighted",
    "dependent-rounding-unweighted",
    "exact-gradient",
    "unordered-set",
    "sum-and-sample",
    "gumbel-softmax",
    "iwae",
    "base",
    "loss-free-bias",
    "quantile-balancing",
    "gshard",
    "gated-sets",
    "smear",
    "random",
)


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


#: one dimension, seeds are cheap
_LINE: dict[str, Any] = {
    "measure": "robust",
    "rates": (0.03, 0.1),
    "weights": (0.0, 1.0),
    "between": (0.02, 0.05),
    "num_steps": 1000,
    "num_seeds": 64,
    "num_tuning_seeds": 8,
    # lines drawn at random differ in how much routing is worth there
    "num_gate_seeds": 64,
}
_REGIMES: dict[str, Any] = {
    "measure": "error",
    "rates": (0.01, 0.03),
    "weights": (0.0, 0.1),
    "between": (0.017, 0.05),
    "num_steps": 600,
    "cost": Cost(step=4.0, seed=0.5, data=0.5),
}
_FOUR = _REGIMES | {"cost": Cost(step=2.5, seed=0.25, data=0.2)}
_TABLE: dict[str, Any] = {
    "measure": "robust",
    "rates": (0.003, 0.01),
    "weights": (0.0, 0.01),
    "between": (0.005, 0.02),
    "capacity_factor": 1.25,
    "num_experts": 16,
    "num_steps": 1000,
    "cost": Cost(step=5.0, seed=1.0, data=1.2),
    "arms": FEW,
}

TASKS = (
    Task(partial(ToyRun, break_at=0.5), num_experts=2, cost=Cost(2.0, 0.035), arms=MANY, **_LINE),
    Task(partial(PiecesRun, num_pieces=2), num_experts=2, cost=Cost(2.0, 0.035), arms=FEW, **_LINE),
    Task(partial(PiecesRun, num_pieces=4), num_experts=4, cost=Cost(2.2, 0.15), **_LINE),
    Task(partial(TwinsRun, num_pieces=4), num_experts=4, cost=Cost(2.2, 0.15), arms=FEW, **_LINE),
    Task(
        partial(PiecesRun, num_pieces=8),
        num_experts=8,
        cost=Cost(2.5, 0.17),
        arms=FEW,
        **_LINE | {"num_steps": 1500},
    ),
    Task(partial(RegimesRun, num_regimes=8), num_experts=8, **_REGIMES),
    Task(partial(RegimesRun, num_regimes=4), num_experts=4, arms=FEW, **_FOUR),
    Task(partial(RegimesRun, num_regimes=16), num_experts=16, arms=FEW, **_REGIMES),
    Task(partial(NoisyTagRun, num_regimes=4), num_experts=4, arms=MANY, **_FOUR),
    Task(RotatedRun, num_experts=4, arms=MANY, **_FOUR),
    Task(
        PlantedRun,
        **_TABLE | {"num_experts": 4, "cost": Cost(step=2.5, seed=0.25, data=0.3)},
    ),
    Task(partial(TableRun, table="diamonds"), **_TABLE),
    Task(
        DomainsRun,
        measure="nll",
        num_experts=4,
        num_steps=800,
        rates=(0.01, 0.03),
        weights=(0.0, 0.01),
        between=(0.005, 0.017),
        cost=Cost(step=3.0, seed=0.8, data=1.3),
        arms=FEW,
    ),
    Task(
        partial(TableRun, table="flights"),
        **_TABLE | {"num_steps": 500, "cost": Cost(step=6.0, seed=1.2, data=13.0), "arms": FEWEST},
    ),
    *(
        Task(
            partial(LanguageRun, router=router),
            measure="nll",
            num_experts=4,
            num_steps=600,
            rates=(0.006,),
            weights=(0.0,),
            between=(),
            cost=Cost(step=0.0, seed=65.0),
            arms=(),
        )
        for router in ("bytes", "hidden")
    ),
)

#: the tasks of a study of minutes, with how many seeds of each are reported
REDUCED = {"lines, break at 0.5": 32, "4 pieces of a line": 16, "digits in 8 regimes": 8}


def reduced() -> tuple[Task, ...]:
    """:returns: few tasks with :data:`FEW` arms and fewer seeds."""
    return tuple(
        replace(task, arms=FEW, num_seeds=REDUCED[task.label], num_tuning_seeds=4)
        for task in TASKS
        if task.label in REDUCED
    )
