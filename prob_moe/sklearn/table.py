"""A table as the search sees it: standardised, in an order of its own, every row once."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Standard(NamedTuple):
    """
    How columns are standardised.

    :param centre: weighted means, (columns,).
    :param scale: weighted standard deviations, (columns,).
    :param varies: False for constant columns, which are left out, (columns,).
    """

    centre: Floats
    scale: Floats
    varies: npt.NDArray[np.bool_]

    def design(self, columns: Floats) -> Floats:
        """:returns: a column of ones, and the standardised columns that vary."""
        kept = (columns[:, self.varies] - self.centre[self.varies]) / self.scale[self.varies]
        return np.hstack([np.ones((len(columns), 1)), kept])

    def back(self) -> Floats:
        """:returns: the matrix that makes coefficients of :meth:`design` those of a one and the columns themselves."""
        matrix = np.zeros((len(self.centre) + 1, int(self.varies.sum()) + 1))
        matrix[0, 0] = 1
        inverse = 1 / self.scale[self.varies]
        matrix[0, 1:] = -self.centre[self.varies] * inverse
        matrix[1 + np.flatnonzero(self.varies), np.arange(1, matrix.shape[1])] = inverse
        return matrix


def standard_of(columns: Floats, weights: Floats) -> Standard:
    """:param weights: frequencies of the rows."""
    share = weights / weights.sum()
    centre = share @ columns
    scale = np.sqrt(share @ np.square(columns - centre))
    varies = scale > 1e-10 * np.abs(columns).max(0, initial=0.0)
    return Standard(centre, np.where(varies, scale, 1.0), varies)


def distinct_rows(columns: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """
    The rows in an order that depends on their contents alone, each of them once, with the sum of its weights. So fits
    depend neither on the order of the rows nor on whether a row is written twice or given twice the weight.

    :returns: rows and weights; those without weight are left out.
    """
    kept = weights > 0
    # Zero has two signs, which are one value.
    distinct, place = np.unique(columns[kept] + 0.0, axis=0, return_inverse=True)
    return distinct, np.bincount(place.ravel(), weights[kept], len(distinct)).astype(np.float64)


def distinct_units(
    columns: Floats, weights: Floats, units: npt.NDArray[np.int64]
) -> tuple[Floats, Floats, npt.NDArray[np.int64]]:
    """
    The same for rows in units, which stay apart: units in an order that depends on their rows alone.

    :param units: of every row, (n,).
    :returns: rows, weights and units, which are numbered from 0.
    """
    both, weights = distinct_rows(np.column_stack([units, columns]), weights)
    names, units = np.unique(both[:, 0], return_inverse=True)
    blocks = [np.column_stack([both[units == unit, 1:], weights[units == unit]]) for unit in range(len(names))]
    blocks.sort(key=lambda block: block.tolist())
    rows = np.concatenate(blocks)
    return rows[:, :-1], rows[:, -1], np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
