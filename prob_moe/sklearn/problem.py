"""A mixture's likelihood on one table, for many vectors of parameters at once."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prob_moe.sklearn.families.base import Family
from prob_moe.sklearn.parameters import Layout


@dataclass(frozen=True)
class Problem:
    r"""
    The penalised log-likelihood :math:`\sum_u c_u \log \sum_j \pi_{uj} \exp \sum_{i \in u} w_i f_{ij}` minus
    :math:`\frac{\lambda}{2}` times :meth:`Layout.ridge`.

    Rows of a unit u share their expert. Without units each row is one by itself. All tensors are float64.

    :param family: the law of y given an expert.
    :param num_experts: k.
    :param columns: what the experts see, (n, p), the first column of ones.
    :param router_columns: what the router sees, (units, q), the first column of ones.
    :param target: y, and what else the family needs to know of a row, (t, n).
    :param offset: added to every linear predictor, (n,).
    :param row_weights: frequencies of the rows within their unit, (n,).
    :param unit_weights: frequencies of the units, (units,).
    :param units: the unit of every row, (n,); None where each row is one by itself.
    :param floors: the least logarithms of dispersions, (d,).
    :param ceilings: the largest ones, (d,).
    :param ridge: λ.
    """

    family: Family
    num_experts: int
    columns: Tensor
    router_columns: Tensor
    target: Tensor
    offset: Tensor
    row_weights: Tensor
    unit_weights: Tensor
    units: Tensor | None
    floors: Tensor
    ceilings: Tensor
    ridge: float = 1e-8

    @cached_property
    def layout(self) -> Layout:
        return Layout(
            self.num_experts,
            self.family.num_predictors,
            self.family.num_dispersions,
            self.columns.shape[1],
            self.router_columns.shape[1],
            self.family.is_softmax,
        )

    @cached_property
    def ridge_matrix(self) -> Tensor:
        return self.layout.ridge()

    @cached_property
    def lower(self) -> Tensor:
        """The least value of every parameter, (D,)."""
        lower = torch.full((self.layout.size,), -torch.inf, dtype=torch.float64)
        lower[self.layout.dispersion_places()] = self.floors
        return lower

    @cached_property
    def upper(self) -> Tensor:
        """The largest value of every parameter, (D,)."""
        upper = torch.full((self.layout.size,), torch.inf, dtype=torch.float64)
        upper[self.layout.dispersion_places()] = self.ceilings
        return upper

    @property
    def row_frequencies(self) -> Tensor:
        """How often every row counts, (n,)."""
        return self.unit_weights if self.units is None else self.row_weights

    @cached_property
    def designs(self) -> list[Tensor]:
        """What every local quantity is linear in, (n, columns): the experts' columns, or a column of ones."""
        ones = torch.ones_like(self.columns[:, :1])
        return [self.columns] * self.family.num_predictors + [ones] * self.family.num_dispersions

    def gram(self, weights: Tensor, rows: Tensor | None, a: int, b: int) -> Tensor:
        r"""
        :param weights: (R, k, n).
        :param rows: factors of the rows, (R, k, n); None for zero.
        :returns: :math:`\sum_i w_i f_i x_i z_i^\top`, x and z being what local quantities a and b are linear in,
            (R, k, *, *).
        """
        one, other = self.designs[a], self.designs[b]
        if rows is None:
            return weights.new_zeros(*weights.shape[:2], one.shape[1], other.shape[1])
        return torch.einsum("rkn,na,nb->rkab", weights * rows, one, other)

    def local(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """:returns: what the law of a row depends on: linear predictors, then dispersions; each (R, k, n)."""
        location, dispersion, _ = self.layout.split(vectors)
        predictors = torch.einsum("rkmp,np->mrkn", location, self.columns) + self.offset
        return *predictors, *(each.unsqueeze(-1).expand(predictors.shape[1:]) for each in dispersion.unbind(-1))

    def log_router(self, vectors: Tensor) -> Tensor:
        """:returns: log-probabilities of the experts, (R, k, units)."""
        router = self.layout.split(vectors).router
        return (router @ self.router_columns.mT).log_softmax(1)

    def per_unit(self, rows: Tensor, dim: int = -1) -> Tensor:
        """Weighted sums over the rows of every unit; without units every row as it is."""
        if self.units is None:
            return rows
        shape = [1] * rows.dim()
        shape[dim] = -1
        sums = list(rows.shape)
        sums[dim] = len(self.unit_weights)
        return rows.new_zeros(sums).index_add(dim, self.units, rows * self.row_weights.view(shape))

    def log_joint(self, vectors: Tensor) -> Tensor:
        r""":returns: :math:`\log \pi_{uj} + \sum_{i \in u} w_i f_{ij}`, (R, k, units)."""
        return self.log_router(vectors) + self.per_unit(self.family.log_prob(self.target, self.local(vectors)))

    def penalty(self, vectors: Tensor) -> Tensor:
        """:returns: what the ridge costs, nats, (R,)."""
        return self.ridge / 2 * torch.einsum("rd,de,re->r", vectors, self.ridge_matrix, vectors)

    def value(self, vectors: Tensor) -> Tensor:
        """:returns: the penalised log-likelihood, nats, (R,)."""
        return self.log_joint(vectors).logsumexp(1) @ self.unit_weights - self.penalty(vectors)

    def log_likelihood(self, vectors: Tensor) -> Tensor:
        """:returns: nats, (R,)."""
        return self.log_joint(vectors).logsumexp(1) @ self.unit_weights

    def on_the_floor(self, vectors: Tensor) -> Tensor:
        """:returns: whether any expert's scale is as small as it may be, (R,)."""
        if not self.family.num_dispersions:
            return torch.zeros(len(vectors), dtype=torch.bool)
        scales = self.layout.dispersion_places()[:, 0]
        return (vectors[:, scales] <= self.floors[0] + 1e-6).any(-1)
