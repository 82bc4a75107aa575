"""Two layers of experts in one Pyro model."""

from collections.abc import Callable
from typing import Any

from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from prob_moe.distributions import AssignmentDistribution, DependentRounding
from prob_moe.estimators import Baseline
from prob_moe.experts import BatchedExperts
from prob_moe.layer.base import RoutedExperts
from prob_moe.layer.parts import check_datapoints, check_experts, likelihood_of, router_logits
from prob_moe.mixture import MixtureOfExperts
from prob_moe.prediction import mix, most_probable


class StackedMixture(RoutedExperts, PyroModule):
    r"""
    A layer of experts, whose outputs are the inputs of a mixture of experts:

    .. math::
        Z^1 \sim \mathrm{assignment}(\mathrm{router}(x)),\quad h_i = \mathrm{expert}_{z^1_i}(x_i),\quad
        y \sim \mathrm{second}(h).

    Two assignment sites share the data plate: ``first``, and the second mixture's ``assignment``. A datapoint dropped
    by the first layer takes no part in the second: no capacity, no load, no likelihood; a capacity factor of the second
    counts those who are left. The router objective is
    :math:`\sum_i \sum_{z^1, z^2} p^1_i(z^1)\, p^2_i(z^2 \mid z^1)\, f_i(z^1, z^2)`, and the importance weight of a
    datapoint is the product over its layers (:class:`~prob_moe.estimators.TraceRouting_ELBO`). Where ``second`` has
    ``num_selected``, its mixture bound takes the place of :math:`f_i`, with the weights of the first layer
    (:class:`~prob_moe.estimators.TraceMixture_ELBO`).

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
        assignment: Callable[..., AssignmentDistribution] = DependentRounding,
        capacity_factor: float,
        baseline: Baseline | nn.Module | dict[str, Any] | None = None,
    ) -> None:
        check_experts(experts)
        super().__init__(router, experts, assignment, capacity_factor=capacity_factor, baseline=baseline)
        self.second = second

    def forward(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """
        :param x: datapoints, (n, d).
        :param y: observations, (n, ...), or None to draw them; then nobody is dropped, see :class:`MixtureOfExperts`.
        :param mask: bool (n,), False for padding.
        :returns: the observations.
        """
        x, mask = check_datapoints(x, mask)
        site = self.site("first", x, router_logits(self.router, x, self.experts), mask)
        hidden = self.process(x, site.assignment, site.law, mask, everybody=y is None)
        if site.law.drops and y is not None:
            mask = site.assignment >= 0  # which padding is not
        elif mask is not None:
            mask = mask.expand(site.assignment.shape)
        return self.second(hidden, y, mask)

    def routing(self, x: Tensor, mask: Tensor | None = None) -> AssignmentDistribution:
        """The first layer's assignment distribution."""
        x, mask = check_datapoints(x, mask)
        return self.law_beside_plate(router_logits(self.router, x, self.experts), mask)

    # The model with routing summed out -------------------------------------------------------------------------------

    def _paths(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Router log-probabilities of the first layer, (k1, n), and what each of its experts puts out, (k1, n, d)."""
        x, _ = check_datapoints(x, mask)
        log_p = router_logits(self.router, x, self.experts).log_softmax(-1)
        return log_p.mT, self.experts.dense(x).movedim(-2, 0)

    def router_objective(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """:returns: the exact router objective over present datapoints, nats, a scalar."""
        log_p, hidden = self._paths(x, mask)
        probabilities = log_p.unsqueeze(-1).exp() * self.second.responsibilities(hidden, mask=mask)
        return (probabilities * self.second.log_likelihoods(hidden, y, mask)).sum()

    def marginal_log_likelihood(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        r""":returns: :math:`\log p(y_i | x_i)`, the sum over both layers' experts, nats, (*, n) for y of (*, n)."""
        log_p, hidden = self._paths(x, mask)
        marginal = (log_p + self.second.marginal_log_likelihood(hidden, y.unsqueeze(-2), mask)).logsumexp(-2)
        return marginal if mask is None else marginal.masked_fill(~mask, 0.0)

    def predict(
        self, x: Tensor, *, num_selected: int | tuple[int, int] | None = None, mask: Tensor | None = None
    ) -> TorchDistribution:
        """
        The law of y given x over both layers' experts, see :meth:`MixtureOfExperts.predict`.

        :param num_selected: of either layer, or of the first and of the second, the most probable experts only, with
            renormalised probabilities.
        :returns: batch shape (n,).
        """
        of_first, of_second = num_selected if isinstance(num_selected, tuple) else (num_selected, num_selected)
        log_p, hidden = self._paths(x, mask)
        log_p, hidden = most_probable(log_p.mT, hidden.movedim(0, -2), of_first)  # (n, m), (n, m, d)
        num_datapoints, num_paths = log_p.shape
        second = None if mask is None else mask.unsqueeze(-1).expand(log_p.shape).flatten()
        log_p2, out = self.second.weighted_outputs(hidden.flatten(0, 1), num_selected=of_second, mask=second)
        log_p = log_p.unsqueeze(-1) + log_p2.reshape(num_datapoints, num_paths, -1)
        paths = out.reshape(num_datapoints, -1, out.shape[-1])
        return mix(log_p.flatten(-2), likelihood_of(paths, self.second.likelihood))
