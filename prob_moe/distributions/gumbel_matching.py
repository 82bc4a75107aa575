"""Balanced assignments as the optimum of perturbed logits, with exact conditionals and likelihood."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.ops.provenance import detach_provenance, extract_provenance, track_provenance
from torch import Tensor

from prob_moe.distributions.base import AssignmentDistribution, gumbel_noise_like
from prob_moe.distributions.enumeration import enumerate_matchings
from prob_moe.matching import (
    Matching,
    matching_log_prob,
    price_log_density,
    solve_assignment,
)

#: nats; a likelihood with a larger standard error comes with a warning
TOLERATED_ERROR = 0.05


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
    G_{-i})`. They need the noise of the draw, which the distribution remembers for its last draw. They are unbiased
    where q > 0 wherever p > 0: always with finite logits. Forbidden experts (-inf) can leave no choice given
    the others, and then the weights miss what its router would have liked.

    The weights have a heavy tail: :math:`P(w_i > t)` falls as :math:`t^{-(c + 1)}`, a Pareto shape of 1 / (c + 1)
    (:attr:`weight_pareto_k`). At c = 1 their variance is infinite: no number of draws that one can afford shows that
    they are unbiased, and :class:`CapacitySkip` or :class:`DependentRounding`, whose weights are bounded, serve better.

    The assignment and its shadow prices v have a joint density in closed form (:meth:`joint_log_prob`); the likelihood
    of the assignment alone, :meth:`log_prob`, is its integral over the prices: exact at k = 2 (quadrature), otherwise a
    deterministic quasi-Monte Carlo estimate with a reported error. It is not the Gibbs law
    :math:`\exp(\sum_i \phi_{i z_i}) / \mathrm{const}` that is often used in its place.

    Cost: O(nk) for the noise, a matching, O(k^3) for the distances; O(nk + k^3) for the joint density, and that times
    the number of points for the likelihood. The mode is the matching of the logits themselves.

    Source: Kool, Maddison & Mnih (2021), "Unbiased Gradient Estimation with Balanced Assignments for Mixtures of
    Experts", section on the Gumbel-Matching distribution; the density and the likelihood are this library's own.

    :param logits: router logits, float (*batch, n, k); -inf forbids an expert while an assignment stays feasible.
    :param capacity: the most datapoints that one expert processes.
    :param num_points: points of the likelihood's integral to begin with, see
        :func:`~prob_moe.matching.matching_log_prob`.

    >>> _ = torch.manual_seed(0)
    >>> matching = GumbelMatching(torch.zeros(6, 3), capacity=2)
    >>> z = matching.sample()
    >>> matching.loads(z)
    tensor([2, 2, 2])
    >>> matching.importance_weights(z).shape
    torch.Size([6])
    >>> matching.log_prob(matching.enumerate_support()).exp().sum()
    tensor(1.00...)
    """

    has_enumerate_support = True
    capacity: Tensor

    def __init__(self, logits: Tensor, *, num_points: int | None = None, **kwargs: Any) -> None:
        super().__init__(logits, **kwargs)
        if self._validate_args and bool((self.logits == -torch.inf).any()):
            # Forbidden experts may leave no assignment of all datapoints within capacity.
            solve_assignment(self.logits.detach().clamp(max=0.0), self.capacity, mask=self.mask)
        self.num_points = num_points
        self._last_draw: tuple[Tensor, Tensor, Matching] | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GumbelMatching":
        new: GumbelMatching = super().expand(batch_shape, _instance)
        new.num_points = self.num_points
        new._last_draw = None
        return new

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        # The solver is not torch: what the logits depend on is carried over to the value by hand.
        logits, provenance = extract_provenance(self.logits.detach())
        logits = logits.expand(torch.Size(sample_shape) + logits.shape)
        scores = gumbel_noise_like(logits).add_(logits)
        mask = None if self.mask is None else self.mask.expand(scores.shape[:-1])
        matching = solve_assignment(scores, self.capacity, mask=mask)
        # A copy of the value, so that nobody who writes into a sample changes what was drawn.
        self._last_draw = (matching.assignment.clone(), scores, matching)
        return track_provenance(matching.assignment, provenance)

    # What the noise of the draw gives --------------------------------------------------------------------------------

    def matching(self, value: Tensor) -> MatchingDraw:
        """
        The scores, prices and exchange distances behind a value that this object drew last.

        :raises ValueError: if ``value`` is not this object's last draw.
        """
        _, scores, matching = self._draw_of(value)
        return MatchingDraw(scores, matching.prices, matching.distances)

    def conditional_logits(self, value: Tensor) -> Tensor:
        r"""
        Logits of :math:`q(z_i = j \mid G_{-i})`, unnormalised, (*, n, k), differentiable in the router logits.

        :raises ValueError: if ``value`` is not this object's last draw.
        """
        _, _, matching = self._draw_of(value)
        index = detach_provenance(value).clamp(min=0).unsqueeze(-1).expand(*value.shape, self.num_experts)
        to_own = matching.distances.to(self._wide).mT.gather(-2, index)
        return self.logits - to_own

    def importance_weights(self, value: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.conditional_logits(value)
            # The distance from an expert to itself is 0, so log q needs just the normaliser.
            log_ratio = logits.logsumexp(-1) - self.logits.to(self._wide).logsumexp(-1)
            weights = log_ratio.exp()
            return weights if self.mask is None else torch.where(self.mask, weights, torch.zeros_like(weights))

    @property
    def weight_pareto_k(self) -> float:
        """1 / (c + 1) for the least capacity c; minus infinity where every expert has room for all."""
        c = int(self.capacity.min()) if self.capacity.numel() else self.num_datapoints
        return -math.inf if self.num_experts == 1 or c >= self.num_datapoints else 1 / (c + 1)

    def marginals(self, num_samples: int) -> Tensor:
        """
        Estimate P(z_i = j) by the mean of the exact conditionals over draws: less variance than counting.

        :returns: (*batch, n, k), rows summing to 1, differentiable nowhere.
        """
        with torch.no_grad():
            fresh = self.expand(self.batch_shape)  # keeps the last draw of this object
            value = fresh.sample(torch.Size([num_samples]))
            return fresh.conditional_logits(value).softmax(-1).mean(0)

    # Likelihood ------------------------------------------------------------------------------------------------------

    def joint_log_prob(self, value: Tensor, prices: Tensor) -> Tensor:
        r"""
        The joint log-density of assignment and shadow prices, in closed form:

        .. math:: \log p(Z, v) = \sum_i \log\mathrm{softmax}(\phi_i - v)_{z_i} + \log\det L(v)_{\mathrm{free}}.

        See :func:`~prob_moe.matching.price_log_density`. Given Z, its gradient has the score of Z as its expectation.

        :param value: (*, n).
        :param prices: shadow prices, (*, k), as :meth:`matching` gives them.
        :returns: nats, (*), in float64 where the prices are.
        """
        (logits, value, prices), provenance = extract_provenance((self.logits, value, prices))
        return track_provenance(price_log_density(logits, value, prices, self.capacity), provenance)

    def log_prob(self, value: Tensor) -> Tensor:
        """
        The likelihood of the assignment, deterministic for given arguments, differentiable in the logits.

        A warning says so where its standard error exceeds 0.05 nat; :meth:`log_prob_error` reports the error.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_prob, error = self._likelihood(value)
        worst = float(error.max()) if error.numel() else 0.0
        if worst > TOLERATED_ERROR:
            warnings.warn(
                f"log_prob of {self} has a standard error of up to {worst:.2g} nat; give a larger num_points, or "
                "score with joint_log_prob, which is exact",
                stacklevel=2,
            )
        return log_prob

    def log_prob_error(self, value: Tensor) -> Tensor:
        """:returns: the standard error of :meth:`log_prob`, nats, (*)."""
        with torch.no_grad():
            return detach_provenance(self._likelihood(value)[1])

    def score_function(self, value: Tensor) -> Tensor:
        """The closed-form joint density for the last draw of this object; the likelihood for other values."""
        if not self._drew(value):
            return self.log_prob(value)
        _, _, matching = self._draw_of(value)
        return self.joint_log_prob(value, matching.prices).to(self.logits.dtype)

    def score_parts(self, value: Tensor) -> ScoreParts:
        """The likelihood as ``log_prob``, and :meth:`score_function`; both give Pyro's ELBOs an unbiased gradient."""
        return ScoreParts(self.log_prob(value), self.score_function(value), 0)

    def entropy_estimate(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """
        The entropy -E[log P(Z)] by Monte Carlo.

        :returns: estimate and its standard error, nats, (*batch) each.
        """
        with torch.no_grad():
            surprise = -self.log_prob(self.expand(self.batch_shape).sample(torch.Size([num_samples])))
            return surprise.mean(0), surprise.std(0) / num_samples**0.5

    @property
    def mode(self) -> Tensor:
        return solve_assignment(self.logits.detach(), self.capacity, mask=self.mask).assignment

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return enumerate_matchings(self, expand)

    def _likelihood(self, value: Tensor) -> tuple[Tensor, Tensor]:
        (logits, value), provenance = extract_provenance((self.logits, value))
        estimates = matching_log_prob(logits, value, self.capacity, num_points=self.num_points)
        return track_provenance(estimates, provenance)

    def _drew(self, value: Tensor) -> bool:
        # Pyro wraps sampled tensors, so identity says nothing: compare values.
        return self._last_draw is not None and torch.equal(self._last_draw[0], detach_provenance(value))

    def _draw_of(self, value: Tensor) -> tuple[Tensor, Tensor, Matching]:
        if self._last_draw is None or not self._drew(value):
            raise ValueError(
                f"value of shape {tuple(value.shape)} is not the last draw of this {self}; importance weights, "
                "conditionals and prices need the noise of the draw: call them on the object that sampled the value, "
                "before it samples again"
            )
        return self._last_draw
