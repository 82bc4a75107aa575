"""Procedures in which every datapoint chooses on its own: what one expert and a set of experts have in common."""

import torch
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from prob_moe.distributions.base import AssignmentDistribution
from prob_moe.distributions.draw import Draw, SetDraw, draw_of
from prob_moe.distributions.noise import Generators, uniform_noise
from prob_moe.distributions.sets import choose_sets, entries_of, pair_log_prob, set_log_prob
from prob_moe.distributions.support import router_choices
from prob_moe.numerics.conditional_poisson import log_inclusion_probabilities


class OwnChoices(AssignmentDistribution):
    r"""
    Datapoint i chooses an expert :math:`z_i \sim p_i`; with ``num_selected`` = m a set of m distinct experts, by
    conditional Poisson sampling with odds p:

    .. math:: P(S) = \prod_{j \in S} p_j / e_m(p), \qquad e_m(p) = \sum_{|S| = m} \prod_{j \in S} p_j.

    This is not the law of the m largest Gumbel-perturbed logits (Plackett-Luce), whose inclusion probabilities are
    others. All is computed from sums of products in logs, O(k m^2) a datapoint.
    """

    def _choose(self, sample_shape: torch.Size, generator: Generators) -> Tensor:
        """What the router chooses, long (*sample, *batch, n) or (*sample, *batch, m, n); padding is 0."""
        if self.num_selected is None:
            return self._sample_router(sample_shape, generator)
        log_odds = self._log_odds()
        shape = sample_shape + log_odds.shape
        uniforms = uniform_noise(shape, log_odds.device, generator, event_dim=2)
        choices = choose_sets(log_odds.expand(shape), self.num_selected, uniforms)
        mask = self._entry_mask
        return choices if mask is None else choices.masked_fill(~mask, 0)

    def _chosen(self, value: Tensor) -> Draw:
        """The draw of a value that was just drawn."""
        if self.num_selected is None:
            return self._drawn(value, self.log_weights(value))
        return self._drawn(value, self.log_weights(value), SetDraw, log_odds=detach_provenance(self._log_odds()))

    def choice_log_prob(self, value: Tensor) -> Tensor:
        """
        :returns: log-probability of what every datapoint chose, its expert or its set, dropped or not; 0 for padding.
            Nats, (*, n), differentiable in the logits.
        """
        if self.num_selected is None:
            return self.router_log_prob(value)
        log_p = set_log_prob(self.logits.log_softmax(-1, dtype=self._wide), router_choices(value))
        return log_p if self.mask is None else torch.where(self.mask, log_p, torch.zeros_like(log_p))

    def _choice_log_weights(self, value: Tensor) -> Tensor:
        """log p_ij - log P(i chooses j) of every entry, dropped or not. Nats, without gradient."""
        if self.num_selected is None:
            return torch.zeros_like(value, dtype=torch.float64)
        with torch.no_grad():
            log_odds = self._log_odds()
            excess = log_odds - log_inclusion_probabilities(log_odds, self.num_selected)
            return entries_of(excess, router_choices(value), self.num_selected)

    def pair_weights(self, value: Tensor) -> Tensor:
        r"""
        Weights of pairs of selected experts:

        .. math:: E\Big[\sum_{a \ne b \in S_i} w_{iab}\, g(a, b)\Big] = \sum_{a \ne b} p_{ia} p_{ib}\, g(a, b),
            \qquad w_{iab} = p_{ia} p_{ib} / \pi_{iab},

        with :math:`\pi_{iab}` the probability that both are chosen and processed. 0 on the diagonal, in padding, and
        where one of the two was dropped.

        :returns: (*, m, m, n) in the dtype of the logits, at least float32, without gradient.
        """
        m = self.num_selected
        if m is None:
            raise NotImplementedError(f"{type(self).__name__}: pairs need several experts per datapoint: num_selected")
        with torch.no_grad():
            draw = draw_of(value, SetDraw)
            # A value that is replayed under other logits was drawn with the odds of its own.
            log_odds = self._log_odds() if draw is None else draw.log_odds
            log_p = self.router_log_prob(value).double()
            log_weights = log_p.unsqueeze(-2) + log_p.unsqueeze(-3) + self._pair_log_overflow(value)
            log_weights = log_weights - pair_log_prob(log_odds, router_choices(value))
            here = value >= 0
            distinct = ~torch.eye(m, dtype=torch.bool, device=value.device).unsqueeze(-1)
            both = here.unsqueeze(-2) & here.unsqueeze(-3) & distinct
            return torch.where(both, log_weights, -torch.inf).exp().to(self._wide)

    def _pair_log_overflow(self, value: Tensor) -> Tensor | float:
        """Minus the log-probability that both of two chosen experts process, given all choices; (*, m, m, n)."""
        return 0.0

    def _log_odds(self) -> Tensor:
        """log p, float64 (*batch, n, k), without gradient."""
        return self.logits.detach().double().log_softmax(-1)
