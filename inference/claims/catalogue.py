"""What is claimed, as comparisons."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import pandas as pd

from inference.claims.comparison import Comparison, Side
from inference.routing_study.task import learns_to_route
from inference.study.arms import Group, all_arms

BOUND = "dependent-rounding-mixture-bound"
UNLIMITED = "unlimited-rounding-mixture-bound"
POISSON = "independent-mixture-bound"
#: the bound by other procedures is ours too, and no alternative to it
OURS = (BOUND, UNLIMITED, POISSON, "skip-mixture-bound", "dependent-rounding-guided-bound")

PAPER, FIELD, US = "paper", "field", "ours"


@dataclass(frozen=True)
class Claim:
    """
    One claim: on a task it holds if all of its comparisons do. With two experts in all, what it says of the bound
    compares nothing, as the bound is the likelihood itself.

    :param of: who claims it.
    :param comparisons: from the rows of one task.
    """

    name: str
    of: str
    sentence: str
    comparisons: Callable[[pd.DataFrame], Iterable[Comparison]]


def _pairs(*pairs: tuple[str | tuple[str, ...], str | tuple[str, ...]]) -> Callable[[pd.DataFrame], list[Comparison]]:
    def comparisons(rows: pd.DataFrame) -> list[Comparison]:
        found = [Comparison(Side(_tuple(first)), Side(_tuple(second))) for first, second in pairs]
        return [each for each in found if _is_sparse(rows) or not {*each.first.arms, *each.second.arms} & set(OURS)]

    return comparisons


def _is_sparse(rows: pd.DataFrame) -> bool:
    """Whether two experts are not all: with two in all, the bound is the likelihood itself."""
    return bool((rows.num_experts > 2).all())


def _tuple(arms: str | tuple[str, ...]) -> tuple[str, ...]:
    return (arms,) if isinstance(arms, str) else arms


def _balance(rows: pd.DataFrame) -> Iterable[Comparison]:
    for arm in ("switch", "top-2-gates"):
        yield Comparison(Side((arm,), "balance", balanced=True), Side((arm,), "balance", balanced=False))


def sparse_alternatives(rows: pd.DataFrame) -> list[str]:
    """
    :returns: the arms with a router that learns, which evaluate at most two experts for a datapoint, do not look at
        other datapoints' future and are not the bound by another procedure; what no registry knows is one of them.
    """
    known = all_arms()
    few = rows[rows.evaluations <= 2].arm.unique()
    return [str(arm) for arm in few if arm not in OURS and (arm not in known or _is_alternative(str(arm)))]


def _is_alternative(name: str) -> bool:
    arm = all_arms()[name]
    return learns_to_route(name) and arm.group is not Group.DENSE and not arm.looks_ahead


def _over_all(rows: pd.DataFrame, stage: str) -> Iterable[Comparison]:
    for arm in sparse_alternatives(rows) if _is_sparse(rows) else ():
        yield Comparison(Side((BOUND,), stage), Side((arm,), stage))


def _over_all_at_every_rate(rows: pd.DataFrame) -> Iterable[Comparison]:
    tuning = rows[rows.stage == "tuning"]
    for rate in sorted(tuning[tuning.arm == BOUND].learning_rate.unique()):
        for arm in sparse_alternatives(rows) if _is_sparse(rows) else ():
            yield Comparison(Side((BOUND,), "tuning", rate), Side((arm,), "tuning", rate))


CLAIMS = (
    Claim(
        "skip-weights",
        PAPER,
        "Unbiased beats biased: skipping with importance weights is better than without.",
        _pairs(("skip", "skip-unweighted")),
    ),
    Claim(
        "matching-weights",
        PAPER,
        "Unbiased beats biased: Gumbel-Matching with importance weights is better than without.",
        _pairs(("gumbel-matching", "gumbel-matching-unweighted")),
    ),
    Claim(
        "importance-weights",
        PAPER,
        "Importance weights matter: the three procedures within capacity are better with them, on average.",
        _pairs(
            (
                ("skip", "gumbel-matching", "dependent-rounding"),
                ("skip-unweighted", "gumbel-matching-unweighted", "dependent-rounding-unweighted"),
            )
        ),
    ),
    Claim(
        "biased-alternatives",
        PAPER,
        "Unbiased beats biased: skipping and Gumbel-Matching are better than Switch.",
        _pairs(("skip", "switch"), ("gumbel-matching", "switch")),
    ),
    Claim(
        "skipping",
        PAPER,
        "Skipping is better than balanced sampling by Gumbel-Matching.",
        _pairs(("skip", "gumbel-matching")),
    ),
    Claim("balance", FIELD, "A load-balancing loss helps Switch and top-2 gates.", _balance),
    Claim("switch-suffices", FIELD, "Switch's gate suffices: it is better than the bound.", _pairs(("switch", BOUND))),
    Claim(
        "gates-suffice",
        FIELD,
        "The gates of two experts suffice: they are better than the bound.",
        _pairs(("top-2-gates", BOUND)),
    ),
    Claim(
        "bound",
        US,
        "The bound by dependent rounding is better than every sparse alternative, each at its best setting.",
        partial(_over_all, stage="final"),
    ),
    Claim(
        "bound-at-every-rate",
        US,
        "At every learning rate the bound by dependent rounding is better than every sparse alternative (on the seeds "
        "of the tuning).",
        _over_all_at_every_rate,
    ),
    Claim(
        "bound-at-equal-compute",
        US,
        "At equal compute the bound by dependent rounding is better than every sparse alternative.",
        partial(_over_all, stage="compute"),
    ),
    Claim(
        "marginals-under-r",
        US,
        "Minimum-variance marginals beat matching: dependent rounding is better than Gumbel-Matching under R.",
        _pairs(("dependent-rounding", "gumbel-matching")),
    ),
    Claim(
        "marginals-under-the-bound",
        US,
        "Minimum-variance marginals, with a limit on the loads and without, are better for the bound than conditional "
        "Poisson.",
        _pairs((BOUND, POISSON), (UNLIMITED, POISSON)),
    ),
    Claim(
        "capacity",
        US,
        "Capacity helps: the bound by dependent rounding is better with a limit on the loads than without.",
        _pairs((BOUND, UNLIMITED)),
    ),
)
