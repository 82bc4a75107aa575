"""Runs whose results are known before they are trained."""

import zlib
from collections.abc import Mapping
from functools import partial

import numpy as np

from inference.routing_study.task import Cost, Task
from inference.study.cache import Record
from inference.study.settings import PiecesRun, Run, SeedsRun

#: three arms that frame a task, two procedures with their twins, gates and bounds
ARMS = (
    "oracle",
    "frozen-router",
    "exact-marginal",
    "skip",
    "skip-unweighted",
    "gumbel-matching",
    "switch",
    "top-2-gates",
    "independent-mixture-bound",
    "dependent-rounding-mixture-bound",
    "unlimited-rounding-mixture-bound",
)
#: nats, of each arm at its best setting
COSTS = dict.fromkeys(ARMS, 3.0) | {
    "oracle": 0.5,
    "exact-marginal": 0.9,
    "dependent-rounding-mixture-bound": 1.0,
    "unlimited-rounding-mixture-bound": 1.0,
    "independent-mixture-bound": 2.0,
    "frozen-router": 4.0,
    "skip-unweighted": 2.5,
    "gumbel-matching": 3.3,
}
#: by how much an arm differs from the others from seed to seed, at least; over two seeds it is 0 in the mean
NOISE = 0.1
BEST_RATE, BEST_WEIGHT = 0.03, 1.0


def task(**changes: object) -> Task:
    """Four pieces of a line, few seeds."""
    settings: dict[str, object] = {
        "make": partial(PiecesRun, num_pieces=4),
        "measure": "robust",
        "num_experts": 4,
        "num_steps": 40,
        "rates": (BEST_RATE, 0.1),
        "weights": (0.0, BEST_WEIGHT),
        "between": (0.02, 0.05),
        "cost": Cost(step=2.0, seed=0.1),
        "arms": ARMS,
    }
    return Task(**(settings | changes))


def record(run: Run, costs: Mapping[str, float] = COSTS) -> Record:
    """
    What a run would have given: its arm's cost, worse at any but the best setting, with what all arms share on a seed
    and what is an arm's own; over an even number of seeds, which must be more than two, the mean is the cost.
    """
    assert isinstance(run, SeedsRun)
    numbers = np.arange(run.num_seeds)
    own = (1 + zlib.crc32(run.arm.encode()) / 2**32) * (-1.0) ** numbers
    cost = costs[run.arm] + 0.5 * (run.learning_rate != BEST_RATE) + 0.2 * (run.load_balancing != BEST_WEIGHT)
    nll = cost + np.sin(2 * np.pi * numbers / run.num_seeds) + NOISE * own
    metrics = {"nll": nll, "error": np.abs(nll), "truth": np.zeros(run.num_seeds)}
    for way, behind in (("1", 0.3), ("2", 0.0), ("all", -0.1)):
        metrics |= {f"nll, {way}": nll + behind, f"robust, {way}": nll + behind, f"error, {way}": np.abs(nll)}
    return Record(run.settings(), {name: values.tolist() for name, values in metrics.items()}, seconds=2.0)
