"""Which runs a study consists of."""

from dataclasses import dataclass
from itertools import product

from inference.study.arms import ARMS, CORE
from inference.study.settings import DigitsRun, Run, ToyRun


@dataclass(frozen=True)
class Grid:
    """
    The runs of a study: every arm at every combination of settings, the same for all.

    :param breaks: of the toy task.
    :param digits_seeds: seeds of the digits, 0 to leave them out.
    """

    arms: tuple[str, ...] = CORE
    learning_rates: tuple[float, ...] = (0.1,)
    load_balancing: tuple[float, ...] = (0.0,)
    breaks: tuple[float, ...] = (0.5,)
    num_seeds: int = 100
    num_steps: int = 2000
    capacity_factor: float = 1.0
    seed: int = 0
    digits_seeds: int = 0
    digits_learning_rates: tuple[float, ...] = (3e-3,)
    digits_epochs: int = 40
    digits_capacity_factor: float = 1.25

    def runs(self) -> list[Run]:
        """:returns: the runs, setting by setting, so that an unfinished study compares all arms at some settings."""
        runs: list[Run] = [
            ToyRun(
                arm,
                rate,
                weight,
                self.capacity_factor,
                self.seed,
                break_at=break_at,
                num_seeds=self.num_seeds,
                num_steps=self.num_steps,
            )
            for arm, break_at, rate, weight in product(self.arms, self.breaks, self.learning_rates, self.load_balancing)
        ]
        runs += [
            DigitsRun(arm, rate, weight, self.digits_capacity_factor, seed, num_epochs=self.digits_epochs)
            for rate, weight, seed, arm in product(
                self.digits_learning_rates, self.load_balancing, range(self.digits_seeds), self.arms
            )
        ]
        return runs


GRIDS: dict[str, Grid] = {
    "none": Grid(),
    "reduced": Grid(
        arms=tuple(ARMS),
        learning_rates=(0.1, 0.3),
        load_balancing=(0.0, 1.0),
        breaks=(0.5, 0.3),
        num_seeds=20,
        num_steps=600,
        digits_seeds=2,
        digits_epochs=10,
    ),
    "full": Grid(
        arms=tuple(ARMS),
        learning_rates=(0.1, 0.03, 0.3),
        load_balancing=(0.0, 1.0),
        breaks=(0.5, 0.3),
        digits_seeds=5,
        digits_learning_rates=(1e-3, 3e-3, 1e-2),
    ),
}
