"""Which runs a study consists of."""

from dataclasses import dataclass
from itertools import product

from inference.study.arms import all_arms, core
from inference.study.settings import DigitsRun, Run, ToyRun


@dataclass(frozen=True)
class Grid:
    """
    The runs of a study: every arm at every combination of settings, the same for all.

    :param arms: their names; None for the quick study's, and with ``every_arm`` for all.
    :param breaks: of the toy task.
    :param digits_seeds: seeds of the digits, 0 to leave them out.
    """

    arms: tuple[str, ...] | None = None
    every_arm: bool = False
    learning_rates: tuple[float, ...] = (0.1,)
    load_balancing: tuple[float, ...] = (0.0,)
    breaks: tuple[float, ...] = (0.5,)
    num_seeds: int = 100
    num_steps: int = 2000
    capacity_factor: float = 1.0
    seed: int = 0
    digits_seeds: int = 0
    digits_learning_rates: tuple[float, ...] = (3e-3,)
    digits_load_balancing: tuple[float, ...] = (0.0,)
    digits_epochs: int = 40
    digits_capacity_factor: float = 1.25

    def describe(self, task: str) -> str:
        """The settings that all arms share, in words, for the title of a task's table."""
        digits = task == DigitsRun.task
        rates = self.digits_learning_rates if digits else self.learning_rates
        weights = self.digits_load_balancing if digits else self.load_balancing
        length = f"{self.digits_epochs} epochs" if digits else f"{self.num_steps} steps"
        return (
            f"learning rates {_listed(rates)}; load-balancing weights {_listed(weights)}; "
            f"{self.digits_seeds if digits else self.num_seeds} seeds; {length} of Adam; "
            f"capacity factor {self.digits_capacity_factor if digits else self.capacity_factor:g}"
        )

    def num_settings(self, task: str) -> int:
        """Combinations of learning rate and load balancing that every arm runs on a task."""
        if task == DigitsRun.task:
            return len(self.digits_learning_rates) * len(self.digits_load_balancing)
        return len(self.learning_rates) * len(self.load_balancing)

    def runs(self) -> list[Run]:
        """:returns: the runs, setting by setting, so that an unfinished study compares all arms at some settings."""
        known = all_arms()
        chosen = self.arms if self.arms is not None else known if self.every_arm else core()
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise ValueError(f"unknown arms {unknown}; known are {', '.join(known)}")
        arms = [arm for arm in known if arm in chosen]
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
            for rate, weight, break_at, arm in product(self.learning_rates, self.load_balancing, self.breaks, arms)
        ]
        runs += [
            DigitsRun(arm, rate, weight, self.digits_capacity_factor, seed, num_epochs=self.digits_epochs)
            for rate, weight, seed, arm in product(
                self.digits_learning_rates, self.digits_load_balancing, range(self.digits_seeds), arms
            )
        ]
        return runs


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


GRIDS: dict[str, Grid] = {
    "none": Grid(),
    "reduced": Grid(
        every_arm=True,
        learning_rates=(0.1, 0.3),
        load_balancing=(0.0, 1.0),
        breaks=(0.5, 0.3),
        num_seeds=20,
        num_steps=600,
        digits_seeds=2,
        digits_epochs=10,
    ),
    "full": Grid(
        every_arm=True,
        learning_rates=(0.1, 0.03, 0.3),
        load_balancing=(0.0, 1.0),
        breaks=(0.5, 0.3),
        digits_seeds=5,
        digits_learning_rates=(3e-3, 1e-2),
        digits_load_balancing=(0.0, 0.1),
    ),
}
