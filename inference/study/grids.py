"""Which runs a study consists of."""

from dataclasses import dataclass
from itertools import product

from inference.registry.builtin import label
from inference.registry.names import resolve
from inference.study.arms import FEW_PIECES, PIECES, all_arms, core
from inference.study.parts import IN_REGIMES, ON_TABLES, UNBALANCED, Part
from inference.study.settings import DigitsRun, PiecesRun, Run, ToyRun

#: steps of Adam for every piece of a line
STEPS_PER_PIECE = 375


@dataclass(frozen=True)
class Grid:
    """
    The runs of a study: on every task every arm at every combination of settings, the same for all.

    :param arms: their names; None for the quick study's, and with ``every_arm`` for all.
    :param breaks: of the two lines, none to leave them out.
    :param digits_seeds: seeds of the digits, 0 to leave them out.
    :param pieces: numbers of pieces of a line, none to leave them out.
    :param pieces_arms: arms there, where ``arms`` names none.
    :param pieces_steps: None for :data:`STEPS_PER_PIECE`.
    :param parts: further tasks, with settings of their own.
    :param tasks: labels of the tasks that are kept, None for all.
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
    pieces: tuple[int, ...] = ()
    pieces_arms: tuple[str, ...] = PIECES
    pieces_learning_rates: tuple[float, ...] = (0.03,)
    pieces_seeds: int = 64
    pieces_steps: int | None = None
    parts: tuple[Part, ...] = ()
    tasks: tuple[str, ...] | None = None

    def describe(self, task: str) -> str:
        """The settings that all arms share, in words, for the title of a task's table."""
        rates, weights = self._settings(task)
        further = ""
        if (part := self._part(task)) is not None:
            if part.penalised:
                further = f", for {', '.join(map(label, UNBALANCED))} {_listed(part.penalised)} too"
            seeds, length, factor = part.num_seeds, f"{part.length} steps", part.capacity_factor
        elif task == DigitsRun.task:
            seeds, length, factor = self.digits_seeds, f"{self.digits_epochs} epochs", self.digits_capacity_factor
        elif task.endswith(PiecesRun.noun):
            steps = f"{STEPS_PER_PIECE} steps per piece" if self.pieces_steps is None else f"{self.pieces_steps} steps"
            seeds, length, factor = self.pieces_seeds, steps, self.capacity_factor
        else:
            seeds, length, factor = self.num_seeds, f"{self.num_steps} steps", self.capacity_factor
        return (
            f"learning rates {_listed(rates)}; load-balancing weights {_listed(weights)}{further}; "
            f"{seeds} seeds; {length} of Adam; capacity factor {factor:g}"
        )

    def num_settings(self, task: str) -> int:
        """Combinations of learning rate and load balancing that every arm runs on a task."""
        rates, weights = self._settings(task)
        return len(rates) * len(weights)

    def _settings(self, task: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if (part := self._part(task)) is not None:
            return part.learning_rates, part.load_balancing
        if task == DigitsRun.task:
            return self.digits_learning_rates, self.digits_load_balancing
        if task.endswith(PiecesRun.noun):
            return self.pieces_learning_rates, (0.0,)
        return self.learning_rates, self.load_balancing

    def _part(self, task: str) -> Part | None:
        return next((part for part in self.parts if part.label == task), None)

    def runs(self) -> list[Run]:
        """
        :returns: the runs, setting by setting, so that an unfinished study compares all arms at some settings.
        :raises ValueError: on an unknown arm, or a task that the grid does not have.
        """
        known = all_arms()
        runs = [run for run in self._all_runs() if known[run.arm].is_for(run)]
        if self.tasks is None:
            return runs
        kept = {resolve("task", task, dict.fromkeys(run.label for run in runs)) for task in self.tasks}
        return [run for run in runs if run.label in kept]

    def _all_runs(self) -> list[Run]:
        known = all_arms()
        arms = self._chosen(tuple(known) if self.every_arm else core())
        pieces = product(self.pieces_learning_rates, self.pieces, self._chosen(self.pieces_arms))
        lines = product(self.learning_rates, self.load_balancing, self.breaks, arms)
        digits = product(self.digits_learning_rates, self.digits_load_balancing, range(self.digits_seeds), arms)
        return [
            *(
                PiecesRun(
                    arm,
                    rate,
                    0.0,
                    self.capacity_factor,
                    self.seed,
                    num_pieces=num_pieces,
                    num_seeds=self.pieces_seeds,
                    num_steps=STEPS_PER_PIECE * num_pieces if self.pieces_steps is None else self.pieces_steps,
                )
                for rate, num_pieces, arm in pieces
            ),
            *(
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
                for rate, weight, break_at, arm in lines
            ),
            *(
                DigitsRun(arm, rate, weight, self.digits_capacity_factor, seed, num_epochs=self.digits_epochs)
                for rate, weight, seed, arm in digits
            ),
            *(run for part in self.parts for run in part.runs(self._chosen(part.arms), self.seed)),
        ]

    def _chosen(self, default: tuple[str, ...]) -> list[str]:
        """The arms that were asked for, or else the default ones, in the order of tables."""
        known = all_arms()
        chosen = default if self.arms is None else self.arms
        unknown = sorted(set(chosen) - set(known))
        if unknown:
            raise ValueError(f"unknown arms {unknown}; known are {', '.join(known)}")
        return [arm for arm in known if arm in chosen]


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


GRIDS: dict[str, Grid] = {
    "none": Grid(pieces=(4,), pieces_arms=FEW_PIECES, pieces_seeds=16),
    "pieces": Grid(breaks=(), pieces=(2, 4, 8), pieces_learning_rates=(0.03, 0.01, 0.1)),
    "regimes": Grid(breaks=(), parts=IN_REGIMES),
    "tables": Grid(breaks=(), parts=ON_TABLES),
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
