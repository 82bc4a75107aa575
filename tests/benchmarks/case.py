"""What a benchmark compares: one of ours with its peers, and what has to be equal for a ratio to mean something."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Side = Callable[[], Any]

#: the sentences that a row of the table may say about its two sides
SAME_RESULT, SAME_WORK, A_PART = "same result", "same work, other model", "a part of ours"


@dataclass(frozen=True, eq=False)
class Case:
    """
    A row of the table for every peer.

    :param what: the row's name.
    :param build: makes the sides by name, functions without arguments, ours as ``"ours"``, whose results are compared.
    :param goals: peers by name, each with what is aimed at: ``">= 15"`` for 15 times faster than the peer, ``"<= 5"``
        for 5 times the peer's time at most, ``""`` for nothing.
    :param kind: :data:`SAME_RESULT`, or another of the three.
    :param deviation: from results of ours and of the peer to a number, for ``SAME_RESULT``.
    :param tolerance: the largest deviation that still is the same result; beyond, no ratio is printed.
    :param work: shapes and operations, where both sides do the same work with other models.
    :param threads: of torch and of our kernels.
    :param seconds: that the rounds of one side take in one turn, at most, beyond three of them.
    :param axis: for a growth curve, what grows and how large it is here: ``("n", 4096)``.
    :param curve: the name of that curve.
    :param full: left out of the short table.
    """

    what: str
    build: Callable[[], dict[str, Side]]
    goals: dict[str, str] = field(default_factory=dict)
    kind: str = SAME_RESULT
    deviation: Callable[[Any, Any], float] | None = None
    tolerance: float = 1e-9
    work: str = ""
    threads: int = 1
    seconds: float = 0.5
    axis: tuple[str, int] | None = None
    curve: str = ""
    full: bool = False

    @property
    def sides(self) -> list[str]:
        return ["ours", *self.goals]
