"""Balanced assignments as the optimum of perturbed logits, with exact conditionals."""

from typing import Any, NamedTuple

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from prob_moe.distributions.base import AssignmentDistribution, gumbel_noise_like
from prob_moe.distributions.enumeration import enumerate_matchings
from prob_moe.matching import Matching, shortest_distances, solve_assignment


class MatchingDraw(NamedTuple):
    """What only the drawing call knows of a Gumbel-Matching sample."""

    #: perturbed logits S, (*sample, *batch, n, k)
    scores: Tensor
    #: shadow prices v, float64 (*sample, *batch, k)
    prices: Tensor
    #: exchange distances D, float64 (*sample, *batch, k, k)
    distances: Tensor


class GumbelMatching(AssignmentDistribution):
    r"""
    The optimal assignment within capacity under logits perturbed by Gumbel noise:

    .. math::
        S = \phi + G,\quad G_{ij} \sim \mathrm{Gumbel}(0, 1)\ \text{iid},\qquad
        Z = \arg\max_Z \sum_i S_{i z_i}\ \text{ subject to loads} \le c.

    Nobody is dropped. Given the noise of all other datapoints, datapoint i goes to expert j with probability

    .. math:: q(z_i = j \mid G_{-i}) = \mathrm{softmax}_j(\phi_{ij} - D_{j z_i}),

    where D are the shortest distances of the exchange graph, hence the weights :math:`w_i = p_{i z_i} / q(z_i \mid
    G_{-i})`. They need the noise of the draw, which the distribution remembers for its last draw.

    Cost O(nk) for the noise, a matching, and O(k^3) for the distances. The mode is the matching of the logits
    themselves.

    Source: Kool, Maddison & Mnih (2021), "Unbiased Gradient Estimation with Balanced Assignments for Mixtures of
    Experts", section on the Gumbel-Matching distribution.

    :param logits: router logits, float (*batch, n, k); -inf forbids an expert while an assignment stays feasible.
    :param capacity: the most datapoints that one expert processes.

    >>> _ = torch.manual_seed(0)
    >>> matching = GumbelMatching(torch.zeros(6, 3), capacity=2)
    >>> z = matching.sample()
    >>> matching.loads(z)
    tensor([2, 2, 2])
    >>> matching.importance_weights(z).shape
    torch.Size([6])
    """

    has_enumerate_support = True
    capacity: int

    def __init__(self, logits: Tensor, **kwargs: Any) -> None:
        super().__init__(logits, **kwargs)
        self._check_feasible()
        self._last_draw: tuple[Tensor, Tensor, Matching] | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GumbelMatching":
        new = super().expand(batch_shape, _instance)
        new._last_draw = None
        return new

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        logits = self.logits.detach().expand(torch.Size(sample_shape) + self.logits.shape)
        scores = gumbel_noise_like(logits).add_(logits)
        matching = solve_assignment(scores, self.capacity, mask=self._sampled_mask(scores))
        value = matching.assignment
        # A copy of the value, so that nobody who writes into a sample changes what was drawn.
        self._last_draw = (value.clone(), scores, matching)
        return value

    def matching(self, value: Tensor) -> MatchingDraw:
        """
        The scores, prices and exchange distances behind a value that this object drew last.

        :raises ValueError: if ``value`` is not this object's last draw.
        """
        _, scores, matching = self._draw_of(value)
        return MatchingDraw(scores, matching.prices, shortest_distances(matching.exchange_costs))

    def conditional_logits(self, value: Tensor) -> Tensor:
        r"""
        Logits of :math:`q(z_i = j \mid G_{-i})`, unnormalised, (*, n, k), differentiable in the router logits.

        :raises ValueError: if ``value`` is not this object's last draw.
        """
        _, _, matching = self._draw_of(value)
        distances = shortest_distances(matching.exchange_costs)
        index = detach_provenance(value).clamp(min=0).unsqueeze(-1).expand(*value.shape, self.num_experts)
        to_own = distances.to(self.logits.dtype).mT.gather(-2, index)
        return self.logits - to_own

    def importance_weights(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.conditional_logits(value)
            # The distance from an expert to itself is 0, so log q needs just the normaliser.
            log_ratio = logits.logsumexp(-1) - self.logits.logsumexp(-1)
            weights = log_ratio.exp()
            return weights if self.mask is None else torch.where(self.mask, weights, torch.zeros_like(weights))

    @property
    def mode(self) -> Tensor:
        return solve_assignment(self.logits.detach(), self.capacity, mask=self.mask).assignment

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return enumerate_matchings(self, expand)

    def _sampled_mask(self, scores: Tensor) -> Tensor | None:
        return None if self.mask is None else self.mask.expand(scores.shape[:-1])

    def _draw_of(self, value: Tensor) -> tuple[Tensor, Tensor, Matching]:
        # Pyro wraps sampled tensors, so identity says nothing: compare values.
        if self._last_draw is None or not torch.equal(self._last_draw[0], detach_provenance(value)):
            raise ValueError(
                f"value of shape {tuple(value.shape)} is not the last draw of this {self}; importance weights, "
                "conditionals and prices need the noise of the draw: call them on the object that sampled the value, "
                "before it samples again"
            )
        return self._last_draw
