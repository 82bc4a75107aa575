"""What an integral over shadow prices is: a value, its error, and the weighted points that it is a sum over."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

FEW_POINTS = 30  # effective points at which the reported error is doubled: standard errors of so few are too small


class Nodes(NamedTuple):
    """Prices v_m (points, b, k) for the problems ``members`` (b,), and log-weights with log P = logsumexp over all
    (points, b)."""

    members: Tensor
    prices: Tensor
    log_weights: Tensor


#: how an integral was found, in words; an estimate has their places
METHODS = ("not feasible", "closed form", "quadrature", "quasi-Monte Carlo", "annealing")


class PriceEstimate(NamedTuple):
    """log P and its standard error in nats, (batch,), which of ``METHODS`` found it, long (batch,), and the nodes
    that it is a sum over."""

    log_prob: Tensor
    error: Tensor
    method: Tensor
    nodes: list[Nodes]

    @classmethod
    def by(cls, method: str, log_prob: Tensor, error: Tensor, nodes: list[Nodes]) -> "PriceEstimate":
        """The estimates of one method."""
        return cls(log_prob, error, torch.full_like(error, METHODS.index(method), dtype=torch.long), nodes)

    def select(self, chosen: Tensor) -> "PriceEstimate":
        """The estimate of the problems where ``chosen`` (batch,) holds."""
        rank = chosen.long().cumsum(0) - 1
        nodes = [
            Nodes(rank[node.members[stays]], node.prices[:, stays], node.log_weights[:, stays])
            for node in self.nodes
            for stays in [chosen[node.members]]
        ]
        return PriceEstimate(self.log_prob[chosen], self.error[chosen], self.method[chosen], nodes)

    def replaced(self, chosen: Tensor, other: "PriceEstimate") -> "PriceEstimate":
        """This estimate with the problems where ``chosen`` (batch,) holds taken from ``other``, which has just
        those."""
        index = chosen.nonzero().squeeze(-1)
        kept = [
            Nodes(node.members[stays], node.prices[:, stays], node.log_weights[:, stays])
            for node in self.nodes
            for stays in [~chosen[node.members]]
        ]
        moved = [node._replace(members=index[node.members]) for node in other.nodes]
        return PriceEstimate(
            self.log_prob.index_copy(0, index, other.log_prob),
            self.error.index_copy(0, index, other.error),
            self.method.index_copy(0, index, other.method),
            kept + moved,
        )


def effective_points(log_weights: Tensor) -> Tensor:
    """Effective sample size (Σ w)² / Σ w² of weights (points, batch), (batch,); 0 without any weight."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp().nan_to_num(nan=0.0)


class Spread(NamedTuple):
    """How far the logarithm of a mean weight can be off, (batch,) each.

    :param least: its standard error for independent points, or N^(κ − 1) if that is more, nats.
    :param tail: κ; an error is longer by 1 + κ: the heavier the tail, the more of the weight has not been seen yet, by
        the sample variances neither.
    :param few: the factor for few effective points.
    """

    least: Tensor
    tail: Tensor
    few: Tensor

    @classmethod
    def of(cls, log_weights: Tensor) -> "Spread":
        """:param log_weights: (points, batch)."""
        count = len(log_weights)
        effective = effective_points(log_weights)
        within = (1 / effective - 1 / count).clamp(min=0.0).sqrt()
        tail = _tail_index(log_weights)
        return cls(torch.maximum(within, count ** (tail - 1)), tail, 1 + FEW_POINTS / effective)

    @property
    def error(self) -> Tensor:
        """What is reported of independent points."""
        return (self.least * (1 + self.tail) * self.few).nan_to_num(nan=torch.inf)


def _tail_index(log_weights: Tensor) -> Tensor:
    """Hill's estimate of the Pareto index κ of the largest weights, at most 1, (batch,).

    Where κ > 1/2 the variance is infinite, sample variances mean nothing, and the error falls like N^(κ − 1)
    (Vehtari et al. 2024, Pareto smoothed importance sampling, J. Mach. Learn. Res. 25).
    """
    count = len(log_weights)
    size = max(1, min(count // 5, round(3 * math.sqrt(count))))
    largest = log_weights.topk(size + 1, 0).values
    return (largest[:-1] - largest[-1]).mean(0).clamp(max=1.0).nan_to_num(nan=1.0)
