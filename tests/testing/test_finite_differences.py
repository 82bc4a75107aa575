"""The error that a central difference states covers its true error, and is small enough to find a wrong gradient."""

import math

import pytest
import torch

from prob_moe.testing import central_difference


@pytest.mark.parametrize("constant", [0.0, 1e3, 1e9, -1e12])
@pytest.mark.parametrize("step", [1e-2, 1e-4, 1e-6, 1e-8])
def test_the_error_covers_rounding_and_truncation(constant: float, step: float) -> None:
    """Where a constant swallows the digits, a fixed relative tolerance would fail a right gradient."""
    x, direction = torch.randn(2, 5, 20, dtype=torch.float64)
    for point, along in zip(x, direction):
        exact = float((point.cos() * along).sum())
        slope = central_difference(lambda x: x.sin().sum() + constant, point, along, step=step)
        assert slope.agrees_with(exact), (slope, exact)
        assert slope.error < 20 * (step**2 + 1e-13 * (1 + abs(constant)) / step)
    if abs(constant) > 1e8 and step < 1e-5:
        assert slope.error > 1e-6 * abs(exact)  # rounding dominates


def test_a_slightly_wrong_gradient_is_found() -> None:
    point, along = torch.randn(2, 20, dtype=torch.float64)
    exact = float((point.softmax(-1) * along).sum())
    slope = central_difference(lambda x: x.logsumexp(-1), point, along)
    assert slope.agrees_with(exact)
    assert not slope.agrees_with(exact + 1e-7)
    assert slope.agrees_with(exact + 1e-7, relative_error=1e-6)


def test_noise_of_a_solver_and_forbidden_entries() -> None:
    point = torch.tensor([0.3, -math.inf, 1.0], dtype=torch.float64)
    along = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    signs = iter([1, -1, -1, 1])
    slope = central_difference(lambda x: x.logsumexp(-1) + 1e-9 * next(signs), point, along, value_error=1e-9)
    assert slope.agrees_with(float(point.softmax(-1)[0]))
    assert math.isfinite(slope.error)
