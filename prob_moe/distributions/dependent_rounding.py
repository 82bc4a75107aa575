"""Assignments with prescribed marginals: the least variance of weights that capacity allows."""

import math
from typing import Any

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from prob_moe.distributions.base import AssignmentDistribution
from prob_moe.distributions.draw import RoundingDraw, draw_of
from prob_moe.distributions.noise import Generators, check_generators
from prob_moe.distributions.sets import code_dropped, entries_of, most_wanted
from prob_moe.distributions.support import router_choices
from prob_moe.numerics import dependent_rounding, minimum_variance_marginals, router_marginals

MARGINALS = ("minimum_variance", "router")
STRICT = 1e-8  # the largest tolerance where experts are forbidden


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

    With ``num_selected`` = m every datapoint gets m distinct experts, :math:`\sum_j r_{ij} = m`, wherever the capacity
    (:math:`nm \le k \min(c, n)`) and forbidden experts allow it, and

    .. math:: r_{ij} = p_{ij} / \sqrt{\max(\alpha_i + \beta_j, p_{ij}^2)}, \qquad w_{ij} = p_{ij} / r_{ij},

    with :math:`\alpha_i` of either sign: an expert that the router likes enough is among the m for certain. Otherwise
    :math:`\sum_j r_{ij} \le m`; a datapoint gets ⌊·⌋ or ⌈·⌉ of that, one at least with probability
    :math:`\kappa_i = \min(1, \sum_j r_{ij})` (:meth:`~AssignmentDistribution.keep_probability`), and its missing
    entries code experts that it does not hold, drawn from :math:`p_i` without repetition. Without ``capacity`` there is
    no limit: r = min(1, p/√α).
    Which experts go together is the algorithm's own affair and may change between versions: weights and marginals do
    not depend on it, functions of a whole set do. Probabilities of pairs have no closed form.

    The joint probability of a draw has no tractable form: ``log_prob`` raises. The router objective does not need
    it (:class:`~prob_moe.estimators.TraceRouting_ELBO`).

    Cost: a convex dual in k prices, a few passes of O(nk), and O(nk^2) at worst for the rounding. The mode is the
    matching of the logits; with more datapoints than slots, of the kc datapoints whose matching has the largest
    :math:`\sum \log p`, the others dropped from their favourite.

    Source: rounding after Gandhi, Khuller, Parthasarathy & Srinivasan (2006), "Dependent rounding and its applications
    to approximation algorithms"; the minimum-variance marginals are this library's own.

    :param logits: router logits, float (*batch, n, k).
    :param capacity: the most datapoints that one expert processes; with ``num_selected`` None for no limit.
    :param num_selected: m, from 1 to k; None for one expert per datapoint in values of shape (*, n).
    :param marginals: ``"minimum_variance"``, or ``"router"``: p itself, its overflow skipped and corrected,
        :math:`r_{ij} = p_{ij} \min(1, c / \sum_i p_{ij})`, for one expert per datapoint within a capacity.
    :param initial_prices: ``expert_prices`` of an earlier, similar problem, to start the dual from.
    :param tolerance: how far :math:`\sum_i E[w_i^2]` may be above the least, relatively. It costs variance only: the
        weights are those of the marginals that were found, and the capacity holds. Where logits forbid experts it is
        1e-8 at most, so that nobody is dropped who need not be.

    >>> _ = torch.manual_seed(0)
    >>> rounding = DependentRounding(torch.zeros(6, 3), capacity=2)
    >>> z = rounding.sample()
    >>> rounding.loads(z), rounding.importance_weights(z)
    (tensor([2, 2, 2]), tensor([1., 1., 1., 1., 1., 1.]))
    """

    drops = True

    def __init__(
        self,
        logits: Tensor,
        *,
        marginals: str = "minimum_variance",
        initial_prices: Tensor | None = None,
        tolerance: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        if marginals not in MARGINALS:
            raise ValueError(f"marginals must be one of {MARGINALS}, got {marginals!r}")
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1, got {tolerance!r}")
        super().__init__(logits, **kwargs)
        if marginals == "router" and (self.capacity is None or (self.num_selected or 1) > 1):
            raise NotImplementedError(
                f'marginals="router" gives one expert per datapoint, within a capacity, got num_selected='
                f'{self.num_selected} and capacity={self.capacity}; use marginals="minimum_variance"'
            )
        self.marginals = marginals
        self.tolerance = tolerance
        self._initial_prices = initial_prices
        self._r: Tensor | None = None
        self._expert_prices: Tensor | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DependentRounding":
        new: DependentRounding = super().expand(batch_shape, _instance)
        new.marginals, new.tolerance = self.marginals, self.tolerance
        new._initial_prices = None
        # The marginals are a function of the logits: solved once, for all that expansion repeats.
        new._r = self._inclusion.expand(new.logits.shape)
        prices = self._expert_prices
        new._expert_prices = None if prices is None else prices.expand(*batch_shape, self.num_experts)
        return new

    @property
    def log_marginals(self) -> Tensor:
        """log r_ij, float64 (*batch, n, k), without gradient; -inf in padding."""
        return self._inclusion.log()

    @property
    def _inclusion(self) -> Tensor:
        """r_ij, float64 (*batch, n, k), solved for once."""
        if self._r is None:
            logits = detach_provenance(self.logits.detach()).double()
            if self.marginals == "router":
                assert self.capacity is not None
                self._r = router_marginals(logits, self.capacity, mask=self.mask).exp()
            else:
                forbidden = logits.numel() > 0 and bool(logits.amin() == -torch.inf)
                solved = minimum_variance_marginals(
                    logits,
                    self.capacity,
                    num_selected=self.num_selected,
                    mask=self.mask,
                    initial_prices=self._initial_prices,
                    tolerance=min(self.tolerance, STRICT) if forbidden else self.tolerance,
                )
                self._r, self._expert_prices = solved.float64_marginals, solved.expert_prices
        return self._r

    @property
    def expert_prices(self) -> Tensor:
        """The dual prices of the experts' capacity, (*batch, k): the ``initial_prices`` of the next step."""
        if self.marginals == "router":
            raise ValueError('marginals="router" have no prices; use marginals="minimum_variance"')
        _ = self._inclusion
        assert self._expert_prices is not None
        return self._expert_prices

    def draw(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: Generators = None,
    ) -> RoundingDraw:
        sample_shape = torch.Size(sample_shape)
        # Rounding is not torch: what the logits depend on comes back below.
        r = detach_provenance(self._inclusion)
        processed = self._round(r.expand(sample_shape + r.shape), generator)
        value = self._code_padding(self._with_choices_of_dropped(processed, sample_shape, generator))
        return self._drawn(value, self.log_weights(value), RoundingDraw, marginals=r, expert_prices=self._expert_prices)

    def _with_choices_of_dropped(self, processed: Tensor, sample_shape: torch.Size, generator: Generators) -> Tensor:
        """The router's choice, coded, wherever there is no expert: where all have theirs, no noise is made."""
        single = generator is None or isinstance(generator, torch.Generator)
        # With one generator for every element none must be used more or less because of another element.
        if single and not bool((processed < 0).any()):
            none = torch.zeros_like(self.logits.detach()[..., 0], dtype=torch.long)
            return processed + (none if self.num_selected is None else none.unsqueeze(-2))
        if self.num_selected is None:
            return torch.where(processed >= 0, processed, ~self._sample_router(sample_shape, generator))
        return code_dropped(processed, self._perturbed(sample_shape, generator))

    def _round(self, r: Tensor, generator: Generators) -> Tensor:
        """:returns: long (*sample, *batch, n) or (*sample, *batch, m, n), -1 where dropped."""
        m = self.num_selected
        if generator is None or isinstance(generator, torch.Generator):
            return dependent_rounding(r, num_selected=m, capacity=self.capacity, generator=generator)
        check_generators(generator, r.shape[:-2])
        problems = r.reshape(-1, *r.shape[-2:]).unbind()
        capacities: Any = [None] * len(problems)
        if self.capacity is not None:
            capacities = self.capacity.expand(r.shape[:-2]).reshape(-1).unbind()
        parts = zip(problems, capacities, generator)
        rounded = [dependent_rounding(part, num_selected=m, capacity=c, generator=g) for part, c, g in parts]
        return torch.stack(rounded).view(r.shape[:-2] + self.event_shape)

    def log_weights(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            log_p, choices = self.logits.log_softmax(-1, dtype=torch.float64), router_choices(value)
            log_r = entries_of(self._inclusion, choices, self.num_selected).log()
            return (entries_of(log_p, choices, self.num_selected) - log_r).masked_fill(value < 0, -torch.inf)

    def keep_probability(self, value: Tensor) -> Tensor:
        draw = draw_of(value, RoundingDraw)
        # A value that is replayed under other logits was drawn with the marginals of its own.
        r = self._inclusion if draw is None else draw.marginals
        kappa = r.sum(-1).clamp(max=1.0)
        if self.mask is not None:
            kappa = torch.where(self.mask, kappa, torch.ones_like(kappa))
        lead = value.shape[: value.dim() - len(self.event_shape)]
        shape = torch.broadcast_shapes((*lead, self.num_datapoints), kappa.shape)
        return kappa.to(self._wide).expand(shape)

    def pair_weights(self, value: Tensor) -> Tensor:
        raise NotImplementedError(
            "DependentRounding has no closed form for probabilities of pairs. The mixture bound does not need them; "
            "for pair weights take IndependentRouting or CapacitySkip"
        )

    @property
    def weight_pareto_k(self) -> float:
        """The weights are bounded: minus infinity."""
        return -math.inf

    @property
    def mode(self) -> Tensor:
        if self.capacity is None:
            assert self.num_selected is not None
            return self._code_padding(most_wanted(self.logits.detach(), self.num_selected))
        return self._best_within_capacity()

    @property
    def _may_lack_capacity(self) -> bool:
        return self.num_selected is not None
