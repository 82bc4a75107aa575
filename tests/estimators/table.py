"""A likelihood that is a table of numbers."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor


class Table(TorchDistribution):
    """A likelihood whose log-probabilities are given, whatever is observed."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = torch.distributions.constraints.real

    def __init__(self, f: Tensor) -> None:
        self.f = f
        super().__init__(f.shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Table":
        return Table(self.f.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self.f + 0 * value
