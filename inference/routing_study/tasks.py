"""The tasks of the study of routing, each with its arms, settings and measure."""

from dataclasses import replace
from functools import partial
from typing import Any

from inference.routing_study.task import LINES, Cost, Task
from inference.study.language import LanguageRun
from inference.study.regime_settings import DomainsRun, NoisyTagRun, PlantedRun, RotatedRun, TwinsRun
from inference.study.settings import PiecesRun, RegimesRun, TableRun, ToyRun

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
