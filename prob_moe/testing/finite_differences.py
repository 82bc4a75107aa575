"""Central differences that know how far off they are."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

#: The computed value of a function is taken to be off by this many roundings of its own size.
ROUNDINGS = 32


class Slope(NamedTuple):
    """
    A derivative along a direction, and a bound of its error.

    :param value: the derivative.
    :param error: what rounding and the finite step may have added or taken away.
    """

    value: float
    error: float

    def agrees_with(self, derivative: float, *, relative_error: float = 0.0) -> bool:
        """
        :param derivative: what is claimed.
        :param relative_error: allowed to the claim on top, times 1 + the size of the slope.
        """
        return abs(derivative - self.value) <= self.error + relative_error * (1 + abs(self.value))


def central_difference(
    function: Callable[[Tensor], Tensor],
    point: Tensor,
    direction: Tensor,
    *,
    step: float = 1e-4,
    value_error: float = 0.0,
) -> Slope:
    r"""
    The derivative of a function along a direction, from its values at four points, with an honest error.

    Two errors compete. Truncation: the central difference :math:`D(h) = (f(x + hd) - f(x - hd)) / 2h` is off by
    :math:`O(h^2)`, four times as much as :math:`D(h/2)`, so that their distance shows it. Rounding: values off by
    :math:`\epsilon |f|` make a difference that is off by :math:`\epsilon |f| / h`, and so do rounded points. A
    tolerance without the second term holds on one processor and fails on the next, whose sums round otherwise.

    :param function: from a tensor like ``point`` to one number. It is evaluated without a graph.
    :param point: where; float64 tells most.
    :param direction: of the shape of ``point``.
    :param step: the larger of the two steps; truncation grows with its square, rounding with its inverse.
    :param value_error: by how much a value of the function may be off, beyond rounding: a tolerance of its solver.
    :returns: D(h/2), and the bound of its error: truncation, thrice the estimate, plus rounding.

    >>> x = torch.tensor(2.0, dtype=torch.float64)
    >>> slope = central_difference(lambda x: x**3, x, torch.ones_like(x))
    >>> slope.agrees_with(12.0), slope.agrees_with(12.000001), slope.error < 1e-7
    (True, False, True)

    A large constant costs digits, and the error says so:

    >>> slope = central_difference(lambda x: x + 1e9, x, torch.ones_like(x))
    >>> slope.agrees_with(1.0), slope.error > 1e-4
    (True, True)
    """
    values = []
    for h in (step, step / 2):
        with torch.no_grad():
            values.append([float(function(point + sign * h * direction)) for sign in (1, -1)])
    wide, narrow = ((up - down) / (2 * h) for (up, down), h in zip(values, (step, step / 2)))
    truncation = abs(wide - narrow)
    size = max(abs(value) for pair in values for value in pair)
    # x + hd is rounded too, which moves the value by the slope times a rounding of x.
    finite = point.where(point.isfinite(), 0)
    moved = point.numel() ** 0.5 * float(finite.norm() / direction.norm()) * abs(narrow)
    rounding = ROUNDINGS * torch.finfo(point.dtype).eps * (size + moved)
    return Slope(narrow, truncation + (rounding + value_error) / (step / 2))
