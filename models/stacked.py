"""Two layers of experts in one Pyro model."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from prob_moe.distributions import AssignmentDistribution
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts, baseline_infer, outside_plate


class StackedMixture(PyroModule):
    r"""
    A layer of experts, whose outputs are the inputs of a mixture of experts:

    .. math::
        Z^1 \sim \mathrm{assignment}(\mathrm{router}(x)),\quad h_i = \mathrm{expert}_{z^1_i}(x_i),\quad
        y \sim \mathrm{second}(h).

    Two assignment sites share the data plate: ``first``, and the second mixture's ``assignment``. A datapoint dropped
    by the first layer takes no part in the second: no capacity, no load, no likelihood; a capacity factor of the second
    counts those who are left. The router objective is
    :math:`\sum_i \sum_{z^1, z^2} p^1_i(z^1)\, p^2_i(z^2 \mid z^1)\, f_i(z^1, z^2)`, and the importance weight of a
    datapoint is the product over its layers (:class:`~prob_moe.estimators.TraceRouting_ELBO`).

    :param router: module (n, d) -> logits (n, k1).
    :param experts: the first layer's experts.
    :param second: the mixture that follows.
    :param assignment: the first layer's assignment distribution.
    :param capacity_factor: the first layer's capacity is ceil(capacity_factor * n / k1).
    :param baseline: Pyro's ``infer["baseline"]`` options of ``first``, or a module (n, d) -> (n,), trained along.
    """

    def __init__(
        self,
        router: nn.Module,
        experts: BatchedExperts,
        second: MixtureOfExperts,
        *,
        assignment: Callable[..., AssignmentDistribution],
        capacity_factor: float,
        baseline: nn.Module | dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.second = second
        self.assignment = assignment
        self.capacity_factor = capacity_factor
        self.baseline = baseline

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """
        :param x: datapoints, (n, d).
        :param y: observations, (n, ...), or None to draw them.
        :returns: the observations.
        """
        routing = self.routing(x)
        z = pyro.sample("first", routing, infer=baseline_infer(self.baseline, x))
        hidden, present = self._first_layer(x, outside_plate(z), routing)
        return self.second(hidden, y, present)

    def routing(self, x: Tensor) -> AssignmentDistribution:
        """The first layer's assignment distribution."""
        return self.assignment(self.router(x), capacity_factor=self.capacity_factor)

    def _first_layer(self, x: Tensor, z: Tensor, routing: AssignmentDistribution) -> tuple[Tensor, Tensor | None]:
        """Outputs (*, n, d) of the first layer, and who goes on to the second (None for everybody)."""
        hidden = self.experts(x.expand(z.shape + x.shape[-1:]), z, capacity=routing.slots)
        return hidden, z >= 0 if routing.drops else None

    # The model with routing summed out -------------------------------------------------------------------------------

    def _paths(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Router log-probabilities of the first layer, (k1, n), and what each of its experts puts out, (k1, n, d)."""
        return self.router(x).log_softmax(-1).mT, self.experts.dense(x).movedim(-2, 0)

    def router_objective(self, x: Tensor, y: Tensor) -> Tensor:
        """:returns: the exact router objective, nats, a scalar."""
        log_p, hidden = self._paths(x)
        probabilities = (log_p.unsqueeze(-1) + self.second.router(hidden).log_softmax(-1)).exp()
        return (probabilities * self.second.log_likelihoods(hidden, y)).sum()

    def marginal_log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        r""":returns: :math:`\log p(y_i | x_i)`, the sum over both layers' experts, nats, (*, n) for y of (*, n)."""
        log_p, hidden = self._paths(x)
        return (log_p + self.second.marginal_log_likelihood(hidden, y.unsqueeze(-2))).logsumexp(-2)

    @torch.no_grad()
    def serve(self, x: Tensor, *, sample: bool = False) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """
        Outputs for serving: zero rows where a layer dropped the datapoint.

        :param sample: draw the assignments; else their ``mode`` is used.
        :returns: outputs (n, out), and both layers' assignments, (n,) each.
        """
        routing = self.routing(x)
        first = routing.sample() if sample else routing.mode
        hidden, present = self._first_layer(x, first, routing)
        out, second = self.second.serve(hidden, sample=sample, mask=present)
        return out, (first, second)
