"""What a run is on tasks that were made so that routing matters."""

from dataclasses import dataclass

from inference.study.settings import PiecesRun, RegimesRun, SeedsRun, TableRun
from models.domain_texts import DOMAINS
from models.planted import NUM_REGIMES, TABLE
from models.regimes import check_noise


@dataclass(frozen=True)
class TwinsRun(PiecesRun):
    """Pieces of a line, of which the first two are one, so that two experts are equal."""

    task = "twins"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_pieces < 3:
            raise ValueError(f"num_pieces must be at least 3, got {self.num_pieces!r}")

    @property
    def label(self) -> str:
        return f"{self.num_pieces} {self.noun}, two of them twins"


@dataclass(frozen=True)
class NoisyTagRun(RegimesRun):
    """
    Digits in regimes whose tag is wrong at times. The oracle goes by the tag, as nobody knows better.

    :param tag_noise: probability that the tag shown is another one.
    """

    task = "noisy tag"

    num_steps: int = 600
    num_regimes: int = 4
    tag_noise: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise(self.tag_noise)

    @property
    def label(self) -> str:
        return f"{super().label}, {self.tag_noise:.0%} of tags wrong"


@dataclass(frozen=True)
class RotatedRun(SeedsRun):
    """
    Digits in four regimes that the image shows, by quarter turns.

    :param hidden_router: a router with a hidden layer, or a linear one.
    """

    task = "rotated"
    has_oracle = True
    measure = "error"
    reference = "dependent-rounding-mixture-bound", "2"

    num_seeds: int = 8
    num_steps: int = 1000
    batch_size: int = 256
    hidden_router: bool = True

    @property
    def label(self) -> str:
        return "rotated digits" if self.hidden_router else "rotated digits, linear router"


@dataclass(frozen=True)
class PlantedRun(TableRun):
    """The table of diamonds with planted regimes, for an expert each; the learning rate falls along half a cosine."""

    task = "planted"
    has_oracle = True
    has_hidden = False

    num_seeds: int = 8
    num_steps: int = 800
    table: str = TABLE
    batch_size: int = 256
    num_experts: int = NUM_REGIMES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table != TABLE:
            raise ValueError(f"table must be {TABLE}, got {self.table!r}")
        if self.num_experts < NUM_REGIMES:
            raise ValueError(f"num_experts must be at least {NUM_REGIMES}, got {self.num_experts!r}")

    @property
    def label(self) -> str:
        return f"{self.table} with planted regimes"


@dataclass(frozen=True)
class DomainsRun(SeedsRun):
    """The next byte in texts of four domains; the learning rate falls along half a cosine."""

    task = "domains"
    has_oracle = True
    reference = "dependent-rounding-mixture-bound", "2"

    num_seeds: int = 8
    num_steps: int = 800
    batch_size: int = 256
    num_experts: int = len(DOMAINS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts < len(DOMAINS):
            raise ValueError(f"num_experts must be at least {len(DOMAINS)}, got {self.num_experts!r}")

    @property
    def label(self) -> str:
        return f"texts of {len(DOMAINS)} domains"
