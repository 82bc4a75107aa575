"""Independent routing that skips what exceeds the capacity, and corrects for it."""

import math

import torch
from torch import Tensor

from prob_moe.distributions.base import AssignmentDistribution
from prob_moe.distributions.draw import Draw
from prob_moe.distributions.entropy import skip_entropy
from prob_moe.distributions.enumeration import enumerate_skips
from prob_moe.distributions.noise import Generators, uniform_noise
from prob_moe.distributions.support import expert_counts, router_choices


class CapacitySkip(AssignmentDistribution):
    r"""
    Datapoints choose independently, :math:`z_i \sim p_i`; of the :math:`n_j` that chose expert j, a uniformly random
    :math:`\min(c, n_j)` are processed and the others dropped.

    .. math::
        \log P = \sum_i \log p_{i z_i} - \sum_j \log \binom{n_j}{\min(c, n_j)}, \qquad
        w_i = \mathrm{processed}_i \cdot \max(1, n_{z_i} / c).

    Any capacity will do, also with more datapoints than slots.

    Cost O(nk + n log n), and a matching for the mode: the assignment of min(n, kc) datapoints that has the largest
    :math:`\sum \log p`, the others dropped from their favourite.

    Source: Kool, Maddison & Mnih (2021), "Unbiased Gradient Estimation with Balanced Assignments for Mixtures of
    Experts", section on skipping.

    :param logits: router logits, float (*batch, n, k).
    :param capacity: the most datapoints that one expert processes.

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
        choices = self._sample_router(torch.Size(sample_shape), generator)
        value = self._skip(choices, uniform_noise(choices.shape, choices.device, generator))
        return self._drawn(value, self.log_weights(value))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        chosen, processed = self._chosen_counts(value), self.loads(value)
        kept = torch.minimum(chosen, self.capacity.unsqueeze(-1))
        log_p = self.router_log_prob(value)
        log_ways = (_log_factorial(chosen) - _log_factorial(kept) - _log_factorial(chosen - kept)).sum(-1)
        log_prob = log_p.sum(-1) - log_ways.to(log_p.dtype)
        # Who is dropped although there was room, or processed beyond it, is not of this procedure.
        return log_prob.masked_fill((processed != kept).any(-1), -torch.inf)

    def entropy(self) -> Tensor:
        r"""
        :math:`\sum_i H(p_i) + \sum_j E[\log\binom{n_j}{\min(c, n_j)}]`, exact, with the Poisson-binomial law of the
        :math:`n_j`. Cost :math:`O(kn \log^2 n)`.
        """
        return skip_entropy(self.logits, self.capacity, self.mask).to(self._wide)

    def log_weights(self, value: Tensor) -> Tensor:
        overflow = (self._chosen_counts(value).double() / self.capacity.unsqueeze(-1)).clamp(min=1.0).log()
        return overflow.gather(-1, router_choices(value)).masked_fill(value < 0, -torch.inf)

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
        return expert_counts(choices, self._present(choices), self.num_experts)

    def _skip(self, choices: Tensor, priority: Tensor) -> Tensor:
        """Drop all but the ``capacity`` datapoints of least priority, in [0, 1), among those with the same choice."""
        present = self._present(choices)
        # One sort groups by expert and orders by priority within; padding forms a group of its own at the end.
        group = torch.where(present, choices, torch.full_like(choices, self.num_experts))
        order = (group + priority).argsort(-1)
        counts = expert_counts(group, torch.ones_like(present), self.num_experts + 1)
        starts = counts.cumsum(-1) - counts
        position = torch.arange(choices.shape[-1], device=choices.device).expand(choices.shape)
        rank_in_order = position - starts.gather(-1, group.gather(-1, order))
        rank = torch.empty_like(choices).scatter(-1, order, rank_in_order)
        return self._code_padding(torch.where(rank < self.capacity.unsqueeze(-1), choices, ~choices))


def _log_factorial(count: Tensor) -> Tensor:
    return torch.lgamma(count.double() + 1)
