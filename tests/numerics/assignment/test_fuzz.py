"""20,000 assignment problems of all kinds against scipy's solver; FUZZ_PROBLEMS=... for another number."""

import os

import numpy as np
import pytest
import torch

from prob_moe.numerics import solve_assignment
from tests.numerics.assignment.test_assignment import check_optimal, scipy_value

NUM_PROBLEMS = int(os.environ.get("FUZZ_PROBLEMS", "20000"))
PARTS = 20


def problem(seed: int) -> tuple[torch.Tensor, int]:
    """Scales, ties, equal rows, one favourite, forbidden pairs; tight and slack; some so large that prices begin on a
    sample of the rows."""
    generator = np.random.default_rng(seed)
    k = int(generator.integers(1, 9 if generator.random() < 0.8 else 25))
    n = int(generator.integers(1, 40 if generator.random() < 0.8 else 600))
    capacity = -(-n // k) + int(generator.integers(0, 4))
    scores = generator.standard_normal((n, k)) * 10.0 ** generator.integers(-3, 4)
    kind = generator.integers(6)
    if kind == 1:
        scores = scores.round()
    elif kind == 2:
        scores = generator.integers(-2, 3, (n, k)).astype(float)
    elif kind == 3:
        scores = scores[generator.integers(0, 3, n) % n]
    elif kind == 4:
        scores[:, 0] += 10.0 ** generator.integers(0, 4)
    if generator.random() < 0.3:
        scores[generator.random((n, k)) < 0.3] = -np.inf
    return torch.from_numpy(scores), capacity


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_value_equals_scipy(part: int) -> None:
    for seed in range(part, NUM_PROBLEMS, PARTS):
        scores, capacity = problem(seed)
        if np.isfinite(scipy_value(scores, capacity)):
            check_optimal(scores, capacity)
        else:
            with pytest.raises(ValueError, match="no assignment"):
                solve_assignment(scores, capacity)
