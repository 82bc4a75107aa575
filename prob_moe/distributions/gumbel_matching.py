"""Balanced assignments as the optimum of perturbed logits, with exact conditionals and likelihood."""

import math
import warnings
from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.ops.provenance import detach_provenance, extract_provenance, track_provenance
from torch import Tensor

from prob_moe.distributions.base import AssignmentDistribution
from prob_moe.distributions.draw import MatchingDraw, draw_of
from prob_moe.distributions.enumeration import enumerate_matchings
from prob_moe.distributions.noise import Generators, gumbel_noise_like
from prob_moe.numerics import (
    METHODS,
    MatchingLikelihood,
    matching_likelihood,
    price_log_density,
    solve_assignment,
)
from prob_moe.numerics.prices.likelihood import check_integration_seed

#: nats; a likelihood with a larger standard error comes with a warning
TOLERATED_ERROR = 0.1


class GumbelMatching(AssignmentDistribution):
    r"""
    The optimal assignment within capacity under logits perturbed by Gumbel noise:

    .. math::
        S = \phi + G,\quad G_{ij} \sim \mathrm{Gumbel}(0, 1)\ \text{iid},\qquad
        Z = \arg\max_Z \sum_i S_{i z_i}\ \text{ subject to loads} \le c.

    Nobody is dropped. Given the noise of all other datapoints, datapoint i goes to expert j with probability

    .. math:: q(z_i = j \mid G_{-i}) = \mathrm{softmax}_j(\phi_{ij} - D_{j z_i}),

    where D are the shortest distances of the exchange graph, hence the weights :math:`w_i = p_{i z_i} / q(z_i \mid
    G_{-i})`. They need the noise of the draw, which travels on the value. They are unbiased
    where q > 0 wherever p > 0: always with finite logits. Forbidden experts (-inf) can leave no choice given
    the others, and then the weights miss what its router would have liked.

    The weights have a heavy tail: :math:`P(w_i > t)` falls as :math:`t^{-(c + 1)}`, a Pareto shape of 1 / (c + 1)
    (:attr:`weight_pareto_k`). At c = 1 their variance is infinite: no number of draws that one can afford shows that
    they are unbiased, and :class:`CapacitySkip` or :class:`DependentRounding`, whose weights are bounded, serve better.

    The assignment and its shadow prices v have a joint density in closed form (:meth:`joint_log_prob`); the likelihood
    of the assignment alone, :meth:`log_prob`, is its integral over the prices: exact at k = 2 (quadrature), otherwise a
    deterministic estimate with a reported error, by quasi-Monte Carlo or, where that fails, by annealing
    (:meth:`log_prob_method`). It is not the Gibbs law
    :math:`\exp(\sum_i \phi_{i z_i}) / \mathrm{const}` that is often used in its place.

    Cost: O(nk) for the noise, a matching, O(k^3) for the distances; O(nk + k^3) for the joint density, and that times
    the number of points for the likelihood. The mode is the matching of the logits themselves.

    Source: Kool, Maddison & Mnih (2021), "Unbiased Gradient Estimation with Balanced Assignments for Mixtures of
    Experts", section on the Gumbel-Matching distribution; the density and the likelihood are this library's own.

    :param logits: router logits, float (*batch, n, k); -inf forbids an expert while an assignment stays feasible.
    :param capacity: the most datapoints that one expert processes.
    :param num_points: points of the likelihood's integral to begin with, see
        :func:`~prob_moe.numerics.matching_likelihood`.
    :param integration_seed: seed of those points, an int of at least 0: another seed gives another estimate of the
        same likelihood, which shows whether the reported error is right.

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

    def __init__(
        self, logits: Tensor, *, num_points: int | None = None, integration_seed: int = 0, **kwargs: Any
    ) -> None:
        check_integration_seed(integration_seed)
        if kwargs.get("num_selected") is not None:
            raise NotImplementedError(
                f"GumbelMatching gives every datapoint one expert, got num_selected={kwargs['num_selected']!r}; "
                "DependentRounding gives several, within capacity"
            )
        super().__init__(logits, **kwargs)
        self.num_points = num_points
        self.integration_seed = integration_seed

    def _check_forbidden(self) -> None:
        # There may be no assignment of all datapoints within capacity.
        solve_assignment(self.logits.detach().clamp(max=0.0), self.capacity, mask=self.mask)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "GumbelMatching":
        new: GumbelMatching = super().expand(batch_shape, _instance)
        new.num_points = self.num_points
        new.integration_seed = self.integration_seed
        return new

    def draw(
        self,
        sample_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        generator: Generators = None,
    ) -> MatchingDraw:
        # The solver is not torch: what the logits depend on is carried over to the value by hand.
        own_logits, provenance = extract_provenance(self.logits.detach())
        logits = own_logits.expand(torch.Size(sample_shape) + own_logits.shape)
        scores = gumbel_noise_like(logits, generator).add_(logits)
        mask = None if self.mask is None else self.mask.expand(scores.shape[:-1])
        matching = solve_assignment(scores, self.capacity, mask=mask)
        log_q = _conditional_logits(own_logits, matching.assignment, matching.distances).log_softmax(-1)
        return self._proposed(
            track_provenance(matching.assignment, provenance),
            log_q.gather(-1, matching.assignment.clamp(min=0).unsqueeze(-1)).squeeze(-1),
            MatchingDraw,
            scores=scores,
            prices=matching.prices,
            distances=matching.distances,
        )

    # What the noise of the draw gives --------------------------------------------------------------------------------

    def matching(self, value: Tensor) -> MatchingDraw:
        """
        The scores, prices and exchange distances behind a value.

        :raises ValueError: if ``value`` carries no draw of a Gumbel-Matching.
        """
        draw = draw_of(value, MatchingDraw)
        if draw is None:
            raise ValueError(_nobody_drew(value, self))
        return draw

    def conditional_logits(self, value: Tensor) -> Tensor:
        r"""
        Logits of :math:`q(z_i = j \mid G_{-i})`, unnormalised, (*, n, k), differentiable in the router logits.

        :param value: a draw of this distribution, or of another with the same logits.
        :raises ValueError: if ``value`` carries no draw of a Gumbel-Matching.
        """
        return _conditional_logits(self.logits, detach_provenance(value), self.matching(value).distances)

    def log_weights(self, value: Tensor) -> Tensor:
        raise ValueError(_nobody_drew(value, self))

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
            return self.conditional_logits(self.sample(torch.Size([num_samples]))).softmax(-1).mean(0)

    # Likelihood ------------------------------------------------------------------------------------------------------

    def joint_log_prob(self, value: Tensor, prices: Tensor) -> Tensor:
        r"""
        The joint log-density of assignment and shadow prices, in closed form:

        .. math:: \log p(Z, v) = \sum_i \log\mathrm{softmax}(\phi_i - v)_{z_i} + \log\det L(v)_{\mathrm{free}}.

        See :func:`~prob_moe.numerics.price_log_density`. Given Z, its gradient has the score of Z as its expectation.

        :param value: (*, n).
        :param prices: shadow prices, (*, k), as :meth:`matching` gives them.
        :returns: nats, (*), in float64 where the prices are.
        """
        (logits, value, prices), provenance = extract_provenance((self.logits, value, prices))
        return track_provenance(price_log_density(logits, value, prices, self.capacity), provenance)

    def log_prob(self, value: Tensor) -> Tensor:
        """
        The likelihood of the assignment, deterministic for given arguments, differentiable in the logits.

        A warning says so where its standard error exceeds 0.1 nat; :meth:`log_prob_error` reports the error.
        """
        if self._validate_args:
            self._validate_sample(value)
        log_prob, error, _ = self.likelihood(value)
        worst = float(error.max()) if error.numel() else 0.0
        if worst > TOLERATED_ERROR:
            warnings.warn(
                f"log_prob of {self} has a standard error of up to {worst:.2g} nat; give a larger num_points, or "
                "score with joint_log_prob, which is exact",
                stacklevel=2,
            )
        return log_prob

    def likelihood(self, value: Tensor) -> MatchingLikelihood:
        """:returns: :meth:`log_prob`, its standard error and its method from one integral, (*) each."""
        (logits, value), provenance = extract_provenance((self.logits, value))
        found = matching_likelihood(
            logits.to(self._wide),
            value,
            self.capacity,
            num_points=self.num_points,
            integration_seed=self.integration_seed,
        )
        return MatchingLikelihood(*track_provenance(tuple(found), provenance))

    def log_prob_error(self, value: Tensor) -> Tensor:
        """:returns: the standard error of :meth:`log_prob`, nats, (*)."""
        with torch.no_grad():
            return detach_provenance(self.likelihood(value).error)

    def log_prob_method(self, value: Tensor) -> list[str]:
        """:returns: how :meth:`log_prob` is found, of ``prob_moe.numerics.METHODS``, for each value in turn."""
        with torch.no_grad():
            return [METHODS[method] for method in self.likelihood(value).method.flatten().tolist()]

    def score_function(self, value: Tensor) -> Tensor:
        """The closed-form joint density of a value that carries its draw; the likelihood of other values."""
        draw = draw_of(value, MatchingDraw)
        if draw is None:
            return self.log_prob(value)
        return self.joint_log_prob(value, draw.prices).to(self._wide)

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


def _conditional_logits(logits: Tensor, assignment: Tensor, distances: Tensor) -> Tensor:
    """phi_ij - D[j, z_i], (*, n, k)."""
    index = assignment.clamp(min=0).unsqueeze(-1).expand(*assignment.shape, logits.shape[-1])
    wide = torch.promote_types(logits.dtype, torch.float32)
    # In rows that lie in one piece, which are gathered several times as fast.
    return logits - distances.to(wide).mT.contiguous().gather(-2, index)


def _nobody_drew(value: Tensor, matching: GumbelMatching) -> str:
    return (
        f"value of shape {tuple(value.shape)} carries no draw of {matching}; importance weights, conditionals and "
        "prices need the noise of the draw: pass what sample, draw or pyro.sample returned, not a part of it"
    )
