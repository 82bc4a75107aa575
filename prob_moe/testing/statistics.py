"""Distances from an expected value, in standard errors."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Deviation:
    """
    How far the mean of independent draws is from what is expected of it, coordinate by coordinate.

    :param mean: the mean of the draws.
    :param expected: what it should be.
    :param error: its standard error.
    :param rounding: differences below this say nothing.
    """

    mean: Tensor
    expected: Tensor
    error: Tensor
    rounding: float

    @property
    def distance(self) -> Tensor:
        """Standard errors between the mean and its expectation; infinite where a mean without error is off."""
        difference = (self.mean - self.expected).abs()
        distance = difference / self.error
        return torch.where(
            difference <= self.rounding, torch.zeros_like(distance), distance.nan_to_num(torch.inf, torch.inf)
        )

    def worst(self) -> tuple[float, tuple[int, ...]]:
        """:returns: the largest distance, and the index of its coordinate."""
        distance = self.distance
        index = torch.unravel_index(distance.argmax(), distance.shape)
        return float(distance[index]), tuple(int(i) for i in index)

    def numbers(self, index: tuple[int, ...]) -> tuple[float, float, float]:
        """:returns: mean, standard error and expectation of a coordinate."""
        return float(self.mean[index]), float(self.error[index]), float(self.expected[index])


def deviation(draws: Tensor, expected: Tensor, least_error: Tensor | float = 0.0) -> Deviation:
    """
    :param draws: independent, identically distributed, (num_draws, *shape). Differences below ten roundings of their
        dtype pass: float64 tells most.
    :param expected: (*shape).
    :param least_error: a lower bound of the standard error, where it is known: an event too rare to be seen has sample
        variance 0.

    >>> off = deviation(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([0.0, 1.0]))
    >>> off.distance
    tensor([1., 0.], dtype=torch.float64)
    """
    eps = torch.finfo(draws.dtype).eps
    draws, expected = draws.double(), expected.double()
    error = draws.std(0) / len(draws) ** 0.5
    least = torch.as_tensor(least_error, dtype=error.dtype, device=error.device)
    # A draw is off by some roundings of the largest.
    scale = max(float(draws.abs().max()), float(expected.abs().max())) if expected.numel() else 0.0
    return Deviation(draws.mean(0), expected, error.maximum(least), 10 * eps * scale)
