"""Assignments with prescribed marginals: the least variance of weights that capacity allows."""

import math
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from prob_moe.distributions.base import AssignmentDistribution
from prob_moe.distributions.draw import RoundingDraw
from prob_moe.distributions.noise import Generators, check_generators
from prob_moe.distributions.support import router_choices
from prob_moe.matching import dependent_rounding, minimum_variance_marginals, router_marginals

MARGINALS = ("minimum_variance", "router")


class DependentRounding(AssignmentDistribution):
    r"""
    Chooses the marginals :math:`r_{ij} = P(i \text{ is processed by } j)` first, as well as they can be chosen, and
    draws an assignment that has exactly these and never exceeds capacity.

    .. math::
        \min_r \sum_{ij} p_{ij}^2 / r_{ij} \ \text{ s.t. } \sum_i r_{ij} \le c,\ \sum_j r_{ij} \le 1
        \quad\Rightarrow\quad r_{ij} = p_{ij} / \sqrt{\alpha_i + \beta_j},\qquad w_i = p_{i z_i} / r_{i z_i}.

    The objective is :math:`\sum_i E[w_i^2]`; by Jensen's inequality no procedure within capacity has unbiased weights
    with a smaller one. The weights are bounded, and exactly 1 where the router is balanced. A datapoint is dropped with
    probability :math:`1 - \sum_j r_{ij}`, which is 0 as long as all :math:`p_{ij} > 0` and :math:`n \le kc`. Forbidden
    experts can make it positive, and more datapoints than slots do: then all experts are full. A dropped entry codes a
    choice drawn from :math:`p_i`. The loads differ by less than 1 from their expectations.

    The joint probability of a draw has no tractable form: :meth:`log_prob` raises. The router objective does not need
    it (:class:`~prob_moe.estimators.TraceRouting_ELBO`).

    Cost: a convex dual in k prices, a few passes of O(nk), and O(nk^2) at worst for the rounding. The mode is the
    matching of the logits; with more datapoints than slots, of the kc datapoints whose matching has the largest
    :math:`\sum \log p`, the others dropped from their favourite.

    Source: rounding after Gandhi, Khuller, Parthasarathy & Srinivasan (2006), "Dependent rounding and its applications
    to approximation algorithms"; the minimum-variance marginals are this library's own.

    :param logits: router logits, float (*batch, n, k).
    :param capacity: the most datapoints that one expert processes.
    :param marginals: ``"minimum_variance"``, or ``"router"``: p itself, its overflow skipped and corrected,
        :math:`r_{ij} = p_{ij} \min(1, c / \sum_i p_{ij})`.
    :param initial_prices: ``expert_prices`` of an earlier, similar problem, to start the dual from.

    >>> _ = torch.manual_seed(0)
    >>> rounding = DependentRounding(torch.zeros(6, 3), capacity=2)
    >>> z = rounding.sample()
    >>> rounding.loads(z), rounding.importance_weights(z)
    (tensor([2, 2, 2]), tensor([1., 1., 1., 1., 1., 1.]))
    """

    drops = True
    capacity: Tensor

    def __init__(
        self,
        logits: Tensor,
        *,
        marginals: str = "minimum_variance",
        initial_prices: Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if marginals not in MARGINALS:
            raise ValueError(f"marginals must be one of {MARGINALS}, got {marginals!r}")
        super().__init__(logits, **kwargs)
        self.marginals = marginals
        self._initial_prices = initial_prices
        self._log_r: Tensor | None = None
        self._expert_prices: Tensor | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DependentRounding":
        new: DependentRounding = super().expand(batch_shape, _instance)
        new.marginals = self.marginals
        new._initial_prices = None
        # The marginals are a function of the logits: solved once, for all that expansion repeats.
        new._log_r = self.log_marginals.expand(new.logits.shape)
        prices = self._expert_prices
        new._expert_prices = None if prices is None else prices.expand(*batch_shape, self.num_experts)
        return new

    @property
    def log_marginals(self) -> Tensor:
        """log r_ij, float64 (*batch, n, k), without gradient; -inf in padding."""
        if self._log_r is None:
            logits = detach_provenance(self.logits.detach()).double()
            if self.marginals == "router":
                self._log_r = router_marginals(logits, self.capacity, mask=self.mask)
            else:
                solved = minimum_variance_marginals(
                    logits, self.capacity, mask=self.mask, initial_prices=self._initial_prices
                )
                self._log_r, self._expert_prices = solved.log_marginals, solved.expert_prices
        return self._log_r

    @property
    def expert_prices(self) -> Tensor:
        """The dual prices of the experts' capacity, (*batch, k): the ``initial_prices`` of the next step."""
        if self.marginals == "router":
            raise ValueError('marginals="router" have no prices; use marginals="minimum_variance"')
        _ = self.log_marginals
        assert self._expert_prices is not None
        return self._expert_prices

    def draw(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: Generators = None,
    ) -> RoundingDraw:
        sample_shape = torch.Size(sample_shape)
        # Rounding is not torch: what the logits depend on comes back with the router's choices below.
        log_r = detach_provenance(self.log_marginals)
        processed = self._round(log_r.exp().expand(sample_shape + log_r.shape), generator)
        value = self._code_padding(
            torch.where(processed >= 0, processed, ~self._sample_router(sample_shape, generator))
        )
        return self._drawn(value, self.log_weights(value), RoundingDraw, log_marginals=log_r)

    def _round(self, r: Tensor, generator: Generators) -> Tensor:
        """:returns: long (*sample, *batch, n), -1 where dropped."""
        if generator is None or isinstance(generator, torch.Generator):
            return dependent_rounding(r, capacity=self.capacity, generator=generator)
        check_generators(generator, r.shape[:-2])
        problems = r.reshape(-1, *r.shape[-2:]).unbind()
        capacities = self.capacity.expand(r.shape[:-2]).reshape(-1).unbind()
        parts = zip(problems, capacities, generator)
        rounded = [dependent_rounding(part, capacity=c, generator=source) for part, c, source in parts]
        return torch.stack(rounded).view(r.shape[:-1])

    def log_weights(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            log_w = self.logits.double().log_softmax(-1) - self.log_marginals
            index = router_choices(value).unsqueeze(-1)
            picked = log_w.expand(*value.shape, self.num_experts).gather(-1, index).squeeze(-1)
            return picked.masked_fill(value < 0, -torch.inf)

    @property
    def weight_pareto_k(self) -> float:
        """The weights are bounded: minus infinity."""
        return -math.inf

    @property
    def mode(self) -> Tensor:
        return self._best_within_capacity()
