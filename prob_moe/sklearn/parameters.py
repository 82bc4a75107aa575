"""How the parameters of a mixture lie in one vector, so that all of them can be moved at once."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Parts(NamedTuple):
    """
    What a vector of parameters stands for; R vectors side by side.

    :param location: coefficients of the experts' linear predictors, (R, k, m, p): m predictors per expert, p columns.
    :param dispersion: logarithms of the experts' dispersions, (R, k, d).
    :param router: coefficients of the router's logits, (R, k, q); those of the last expert are zero.
    """

    location: Tensor
    dispersion: Tensor
    router: Tensor


@dataclass(frozen=True)
class Layout:
    """
    The order within a vector: expert by expert its m times p coefficients and its d dispersions, then the router's q
    coefficients of every expert but the last one, which is the reference.
    """

    num_experts: int
    num_predictors: int
    num_dispersions: int
    num_columns: int
    num_router_columns: int
    is_softmax: bool = False

    @property
    def expert_size(self) -> int:
        """Parameters of one expert."""
        return self.num_predictors * self.num_columns + self.num_dispersions

    @property
    def router_start(self) -> int:
        """Where the router's parameters begin."""
        return self.num_experts * self.expert_size

    @property
    def size(self) -> int:
        """Parameters of all."""
        return self.router_start + (self.num_experts - 1) * self.num_router_columns

    def split(self, vectors: Tensor) -> Parts:
        """:param vectors: (R, D)."""
        count, k = len(vectors), self.num_experts
        experts = vectors[:, : self.router_start].view(count, k, self.expert_size)
        locations = self.num_predictors * self.num_columns
        router = vectors[:, self.router_start :].reshape(count, k - 1, self.num_router_columns)
        return Parts(
            experts[..., :locations].reshape(count, k, self.num_predictors, self.num_columns),
            experts[..., locations:],
            torch.cat([router, router.new_zeros(count, 1, self.num_router_columns)], 1),
        )

    def join(self, parts: Parts) -> Tensor:
        """:returns: (R, D); the router's coefficients are taken relative to the last expert's."""
        count = len(parts.location)
        experts = torch.cat([parts.location.reshape(count, self.num_experts, -1), parts.dispersion], -1)
        router = parts.router[:, :-1] - parts.router[:, -1:]
        return torch.cat([experts.reshape(count, -1), router.reshape(count, -1)], -1)

    def dispersion_places(self) -> Tensor:
        """:returns: the places of the dispersions in a vector, (k, d)."""
        starts = torch.arange(self.num_experts).unsqueeze(-1) * self.expert_size
        return starts + torch.arange(self.num_predictors * self.num_columns, self.expert_size)

    def permuted(self, vectors: Tensor, order: Tensor) -> Tensor:
        """:returns: the same mixtures with their experts in another order, (R, D)."""
        parts = self.split(vectors)
        return self.join(Parts(*(part[:, order] for part in parts)))

    def ridge(self) -> Tensor:
        """
        :returns: the matrix (D, D) of a quadratic form: squares of all coefficients; those that are relative to a
            reference, of the router and of classes, around their mean, so that it does not matter which one it is.
        """
        predictors = _centred(self.num_predictors) if self.is_softmax else torch.eye(self.num_predictors).double()
        location = torch.kron(predictors, torch.eye(self.num_columns, dtype=torch.float64))
        expert = torch.block_diag(location, location.new_zeros(self.num_dispersions, self.num_dispersions))
        router = torch.kron(_centred(self.num_experts - 1), torch.eye(self.num_router_columns, dtype=torch.float64))
        return torch.block_diag(*[expert] * self.num_experts, router)


def _centred(count: int) -> Tensor:
    """The sum of squares of ``count`` numbers and a zero around their mean, as a matrix."""
    return torch.eye(count, dtype=torch.float64) - 1 / (count + 1)
