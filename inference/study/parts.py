"""Further tasks of a grid, each with arms and settings of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

from inference.study.settings import RegimesRun, Run, SeedsRun, TableRun

#: what digits in regimes compare
REGIMES = (
    "oracle",
    "frozen-router",
    "one-expert",
    "exact-marginal",
    "dependent-rounding-mixture-bound",
    "unlimited-rounding-mixture-bound",
    "independent-mixture-bound",
    "independent",
    "skip",
    "switch",
    "top-2-gates",
    "smear",
)
#: and in short
FEW_REGIMES = ("oracle", "frozen-router", "exact-marginal", "dependent-rounding-mixture-bound", "switch")

#: what tables compare
TABLES = (
    "frozen-router",
    "one-expert",
    "exact-marginal",
    "unlimited-rounding-mixture-bound",
    "dependent-rounding-mixture-bound",
    "independent-mixture-bound",
    "independent",
    "switch",
    "top-2-gates",
)

#: what uses few of its experts unless a loss forbids it: the field trains it with a weight above 0
UNBALANCED = ("independent", "switch", "top-2-gates")


@dataclass(frozen=True)
class Part:
    """
    One task: every arm at every combination of settings, all seeds of a run side by side.

    :param penalised: further weights of the load-balancing loss for the arms of :data:`UNBALANCED`.
    :param make: a run from arm, learning rate, load-balancing weight, capacity factor and seed, and ``num_seeds``.
    :param num_steps: None for the task's own number.
    """

    make: Callable[..., SeedsRun]
    arms: tuple[str, ...]
    learning_rates: tuple[float, ...]
    load_balancing: tuple[float, ...] = (0.0,)
    penalised: tuple[float, ...] = ()
    capacity_factor: float = 1.0
    num_seeds: int = 8
    num_steps: int | None = None

    @property
    def label(self) -> str:
        """The task in words."""
        return self._run(self.arms[0], self.learning_rates[0], self.load_balancing[0], 0).label

    @property
    def length(self) -> int:
        """Steps of a run."""
        return self._run(self.arms[0], self.learning_rates[0], self.load_balancing[0], 0).num_steps

    def runs(self, arms: list[str], seed: int) -> list[Run]:
        """
        :param arms: in the order of tables.
        :param seed: the first one.
        """
        settings = [
            *product(self.learning_rates, self.load_balancing, arms),
            *product(self.learning_rates, self.penalised, [arm for arm in arms if arm in UNBALANCED]),
        ]
        return [self._run(arm, rate, weight, seed) for rate, weight, arm in dict.fromkeys(settings)]

    def _run(self, arm: str, rate: float, weight: float, seed: int) -> SeedsRun:
        steps = {} if self.num_steps is None else {"num_steps": self.num_steps}
        return self.make(arm, rate, weight, self.capacity_factor, seed, num_seeds=self.num_seeds, **steps)


IN_REGIMES = (
    Part(partial(RegimesRun, num_regimes=8), REGIMES, (0.03, 0.01, 0.1), penalised=(0.1,)),
    *(Part(partial(RegimesRun, num_regimes=number), FEW_REGIMES, (0.03, 0.01), penalised=(0.1,)) for number in (4, 16)),
)
ON_TABLES = tuple(
    Part(
        partial(TableRun, table=table),
        TABLES,
        (0.003,),
        penalised=(0.01,),
        capacity_factor=1.25,
        num_seeds=num_seeds,
    )
    for table, num_seeds in (("diamonds", 8), ("flights", 4))
)
