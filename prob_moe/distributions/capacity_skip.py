"""Independent routing that skips what exceeds the capacity, and corrects for it."""

import math

import torch
from torch import Tensor

from prob_moe.distributions.choices import OwnChoices
from prob_moe.distributions.draw import Draw
from prob_moe.distributions.entropy import skip_entropy
from prob_moe.distributions.enumeration import enumerate_skips
from prob_moe.distributions.noise import Generators, uniform_noise
from prob_moe.distributions.support import expert_counts, router_choices


class CapacitySkip(OwnChoices):
    r"""
    Datapoints choose independently, :math:`z_i \sim p_i`; of the :math:`n_j` that chose expert j, a uniformly random
    :math:`\min(c, n_j)` are processed and the others dropped.

    .. math::
        \log P = \sum_i \log p_{i z_i} - \sum_j \log \binom{n_j}{\min(c, n_j)}, \qquad
        w_i = \mathrm{processed}_i \cdot \max(1, n_{z_i} / c).

    With ``num_selected`` = m every datapoint chooses a set :math:`S_i` of m distinct experts as in
    :class:`IndependentRouting`, and every expert keeps a uniformly random :math:`\min(c, n_j)` of those that chose it,
    independently of the other experts:

    .. math::
        \log P = \sum_i \log P(S_i) - \sum_j \log \binom{n_j}{\min(c, n_j)}, \qquad
        w_{ij} = \mathrm{processed}_{ij} \cdot \max(1, n_j / c)\, p_{ij} / P(j \in S_i),

    and datapoint i keeps one expert at least with probability
    :math:`\kappa_i = 1 - \prod_{j \in S_i} (1 - \min(1, c / n_j))` (:meth:`~AssignmentDistribution.keep_probability`).

    Any capacity will do, also with more datapoints than slots.

    Cost O(nk + nm log nm), O(nkm^2) for sets, and a matching for the mode: the assignment of as many places as the
    experts have room for, min(nm, kc), that has the largest :math:`\sum \log p`, the others dropped from their
    favourites.

    Source: Kool, Maddison & Mnih (2021), "Unbiased Gradient Estimation with Balanced Assignments for Mixtures of
    Experts", section on skipping.

    :param logits: router logits, float (*batch, n, k).
    :param capacity: the most datapoints that one expert processes.
    :param num_selected: m, from 1 to k; None for one expert per datapoint in values of shape (*, n).

    >>> _ = torch.manual_seed(0)
    >>> skip = CapacitySkip(torch.zeros(6, 2), capacity=3)
    >>> z = skip.sample()
    >>> skip.loads(z).max() <= 3
    tensor(True)
    """

    has_enumerate_support = True
    drops = True
    capacity: Tensor

    def draw(self, sample_shape: torch.Size = torch.Size(), *, generator: Generators = None) -> Draw:  # noqa: B008
        choices = self._choose(torch.Size(sample_shape), generator)
        priority = uniform_noise(choices.shape, choices.device, generator, event_dim=len(self.event_shape))
        return self._chosen(self._skip(choices, priority))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        chosen, processed = self._chosen_counts(value), self.loads(value)
        kept = torch.minimum(chosen, self.capacity.unsqueeze(-1))
        log_p = self.choice_log_prob(value)
        log_ways = (_log_factorial(chosen) - _log_factorial(kept) - _log_factorial(chosen - kept)).sum(-1)
        log_prob = log_p.sum(-1) - log_ways.to(log_p.dtype)
        # Who is dropped although there was room, or processed beyond it, is not of this procedure.
        return log_prob.masked_fill((processed != kept).any(-1), -torch.inf)

    def entropy(self) -> Tensor:
        r"""
        :math:`\sum_i H(p_i) + \sum_j E[\log\binom{n_j}{\min(c, n_j)}]`, exact, with the Poisson-binomial law of the
        :math:`n_j`, and the entropy of the sets in place of :math:`H(p_i)` with ``num_selected``. Cost
        :math:`O(kn \log^2 n)`.
        """
        return skip_entropy(self.logits, self.capacity, self.mask, self.num_selected).to(self._wide)

    def log_weights(self, value: Tensor) -> Tensor:
        return (self._choice_log_weights(value) + self._log_overflow(value)).masked_fill(value < 0, -torch.inf)

    def keep_probability(self, value: Tensor) -> Tensor:
        log_kept = -self._log_overflow(value)
        if self.num_selected is None:
            log_kept = log_kept.unsqueeze(-2)
        # An expert with room for all keeps for certain: log(1 - 1) = -inf makes kappa 1.
        kappa = -torch.expm1(torch.log1p(-log_kept.exp()).sum(-2))
        present = torch.ones_like(kappa, dtype=torch.bool) if self.mask is None else self.mask
        return torch.where(present, kappa, torch.ones_like(kappa)).to(self._wide)

    @property
    def weight_pareto_k(self) -> float:
        """The weights are bounded: minus infinity."""
        return -math.inf

    @property
    def mode(self) -> Tensor:
        return self._best_within_capacity()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return enumerate_skips(self, expand)

    def _chosen_counts(self, value: Tensor) -> Tensor:
        """How many datapoints chose each expert, processed or not, long (*, k)."""
        choices = router_choices(value)
        present = self._present(choices)
        if self.num_selected is not None:
            choices, present = choices.flatten(-2), present.flatten(-2)
        return expert_counts(choices, present, self.num_experts)

    def _log_overflow(self, value: Tensor) -> Tensor:
        """log max(1, n_j / c) for the expert of every entry, dropped or not: minus its log-probability to be kept."""
        overflow = (self._chosen_counts(value).double() / self.capacity.unsqueeze(-1)).clamp(min=1.0).log()
        choices = router_choices(value)
        flat = choices if self.num_selected is None else choices.flatten(-2)
        return overflow.expand(*flat.shape[:-1], -1).gather(-1, flat).view(choices.shape)

    def _pair_log_overflow(self, value: Tensor) -> Tensor:
        overflow = self._log_overflow(value)
        return overflow.unsqueeze(-2) + overflow.unsqueeze(-3)

    def _skip(self, choices: Tensor, priority: Tensor) -> Tensor:
        """Drop all but the ``capacity`` entries of least priority, in [0, 1), among those with the same choice."""
        present = self._present(choices)
        # One sort groups by expert and orders by priority within; padding forms a group of its own at the end.
        group = torch.where(present, choices, torch.full_like(choices, self.num_experts))
        if self.num_selected is not None:
            group, priority = group.flatten(-2), priority.flatten(-2)
        order = (group + priority).argsort(-1)
        counts = expert_counts(group, torch.ones_like(group, dtype=torch.bool), self.num_experts + 1)
        starts = counts.cumsum(-1) - counts
        position = torch.arange(group.shape[-1], device=group.device).expand(group.shape)
        rank_in_order = position - starts.gather(-1, group.gather(-1, order))
        rank = torch.empty_like(group).scatter(-1, order, rank_in_order)
        kept = (rank < self.capacity.unsqueeze(-1)).view(choices.shape)
        return self._code_padding(torch.where(kept, choices, ~choices))


def _log_factorial(count: Tensor) -> Tensor:
    return torch.lgamma(count.double() + 1)
