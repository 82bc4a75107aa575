"""The law of y given an expert: its density, derivatives, and the experts' half of an EM step."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prob_moe.sklearn.linear import solve_positive, weighted_least_squares
from prob_moe.sklearn.parameters import Parts
from prob_moe.sklearn.table import Floats

if TYPE_CHECKING:
    from prob_moe.sklearn.problem import Problem


class Family(ABC):
    """
    What a law is in numbers: linear predictors, dispersions, and a target of one or more numbers per row.

    :param num_predictors: linear predictors of an expert, m.
    """

    name: str
    #: Positive numbers that an expert learns beside its coefficients, d; the first one is its scale, which has a floor.
    num_dispersions: int = 0
    #: Least and largest logarithms of the dispersions; a scale's floor follows from the table.
    bounds: tuple[tuple[float, float], ...] = ()
    #: Whether y may be standardised: the predictors follow it, and the scale scales with it.
    in_units_of_y: bool = False
    #: Whether y is a count.
    discrete: bool = False
    #: Whether :meth:`maximise` is done after one step.
    has_closed_form: bool = False
    #: Whether the predictors are logits of classes relative to the last one.
    is_softmax: bool = False

    def __init__(self, num_predictors: int = 1) -> None:
        self.num_predictors = num_predictors

    @abstractmethod
    def log_prob(self, target: Tensor, local: tuple[Tensor, ...]) -> Tensor:
        """
        :param target: y, and what else there is to know of a row, (t, n).
        :param local: m linear predictors and d logarithms of dispersions, each (R, k, n).
        :returns: nats, (R, k, n).
        """

    @abstractmethod
    def law(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Any:
        """
        :param predictors: (m, *rows).
        :param dispersions: logarithms, (d, *rows) up to broadcasting.
        :param trials: (n,).
        :returns: a distribution of ``scipy.stats``.
        """

    @abstractmethod
    def on_predictor_scale(self, target: Tensor) -> Tensor | None:
        """:returns: y where linear predictors are, without infinities, (n,); None if there is no such thing."""

    def log_slope(self, target: Tensor) -> Tensor:
        """:returns: the logarithm of the derivative of y by :meth:`on_predictor_scale`, (n,)."""
        return torch.zeros_like(target[0])

    def check(self, y: Floats, trials: Floats | None) -> None:  # noqa: B027
        """
        :raises ValueError: y is none that the law can draw.
        """

    def mean(self, predictors: Floats, dispersions: Floats, trials: Floats) -> Floats:
        """:returns: the mean of y."""
        means: Floats = self.law(predictors, dispersions, trials).mean()
        return means

    def flat_dispersions(self, target: Tensor, weights: Tensor) -> list[float]:
        """:returns: logarithms of dispersions from which a search can begin; ``weights`` sum to 1."""
        return []

    def flat_predictors(self, target: Tensor, weights: Tensor) -> list[float]:
        """:returns: predictors of an expert that looks at no columns, from which a search can begin."""
        y = self.on_predictor_scale(target)
        return [0.0] * self.num_predictors if y is None else [float(weights @ y)]

    def flat(self, problem: "Problem") -> Parts:
        """:returns: an expert from which :meth:`maximise` can begin, as parts of one vector and one expert."""
        weights = problem.row_frequencies / problem.row_frequencies.sum()
        location = torch.zeros(1, 1, self.num_predictors, problem.columns.shape[1], dtype=torch.float64)
        intercepts = self.flat_predictors(problem.target, weights)
        location[0, 0, :, 0] = torch.tensor(intercepts, dtype=torch.float64) - weights @ problem.offset
        dispersions = torch.tensor(self.flat_dispersions(problem.target, weights), dtype=torch.float64)
        dispersions = torch.minimum(torch.maximum(dispersions, problem.floors), problem.ceilings)
        return Parts(location, dispersions.view(1, 1, -1), location.new_zeros(1, 1, 1))

    def distance_to_fit(self, problem: "Problem", rows: Tensor) -> Tensor | None:
        """
        :param rows: 1 for the rows through which a linear predictor is laid, otherwise 0, (n,).
        :returns: how far every row is from it, (n,); None if y is no number.
        """
        y = self.on_predictor_scale(problem.target)
        if y is None:
            return None
        y = y - problem.offset
        location = weighted_least_squares(problem.columns, y, rows, torch.tensor(problem.ridge))
        return (y - problem.columns @ location).abs()

    def derivatives(self, target: Tensor, local: tuple[Tensor, ...]) -> tuple[list[Tensor], list[list[Tensor]]]:
        """:returns: the first and second derivatives of :meth:`log_prob` by every local quantity, each (R, k, n)."""
        with torch.enable_grad():
            leaves = [each.detach().clone().requires_grad_() for each in local]
            # A value depends on the local quantities of its own row alone, so that the sum's gradient is all of them.
            first = torch.autograd.grad(self.log_prob(target, tuple(leaves)).sum(), leaves, create_graph=True)
            second = []
            for slope in first:
                rows = torch.autograd.grad(slope.sum(), leaves, retain_graph=True, materialize_grads=True)
                second.append([row.detach() for row in rows])
        return [slope.detach() for slope in first], second

    def information(self, local: tuple[Tensor, ...], second: list[list[Tensor]]) -> list[list[Tensor | None]]:
        """
        :param second: derivatives of :meth:`log_prob`.
        :returns: a positive semidefinite matrix of local quantities for every row, expected or observed, each entry
            (R, k, n); None for zero. Here the observed one, which is that of canonical links.
        """
        return [[-each for each in row] for row in second]

    def maximise(self, problem: "Problem", weights: Tensor, vectors: Tensor) -> Tensor:
        r"""
        Experts for which :math:`\sum_i w_{ij} f_{ij}` minus the ridge is not less than for the given ones: one step of
        Fisher scoring, shortened for every expert until it gains.

        :param weights: responsibilities times frequencies, (R, k, n).
        :param vectors: parameters, (R, D).
        :returns: the same with other experts.
        """
        layout, start = problem.layout, problem.layout.router_start
        count, k, size = len(vectors), layout.num_experts, layout.expert_size
        local = problem.local(vectors)
        first, second = self.derivatives(problem.target, local)
        designs = problem.designs
        information = self.information(local, second)
        blocks = [
            torch.cat([problem.gram(weights, each, a, b) for b, each in enumerate(row)], -1)
            for a, row in enumerate(information)
        ]
        penalty = problem.ridge * problem.ridge_matrix[:size, :size]
        experts = vectors[:, :start].view(count, k, size)
        slopes = torch.cat([(weights * slope) @ design for slope, design in zip(first, designs)], -1)
        step = solve_positive(torch.cat(blocks, -2) + penalty, slopes - experts @ penalty)

        def gain(experts: Tensor, local: tuple[Tensor, ...]) -> Tensor:
            cost = torch.einsum("rka,ab,rkb->rk", experts, penalty, experts) / 2
            return (weights * self.log_prob(problem.target, local)).sum(-1) - cost

        lower, upper = problem.lower[:size], problem.upper[:size]
        before, length = gain(experts, local), torch.ones(count, k, 1, dtype=torch.float64)
        for _ in range(10):
            moved = torch.minimum(torch.maximum(experts + length * step, lower), upper)
            result = torch.cat([moved.reshape(count, -1), vectors[:, start:]], -1)
            worse = ~(gain(moved, problem.local(result)) >= before - 1e-12)
            if not bool(worse.any()):
                return result
            length = torch.where(worse.unsqueeze(-1), length / 4, length)
        moved = torch.where(worse.unsqueeze(-1), experts, moved)
        return torch.cat([moved.reshape(count, -1), vectors[:, start:]], -1)


def first_row(wrong: Any) -> int:
    """:returns: the first row for which something is true."""
    return int(np.argmax(wrong))
