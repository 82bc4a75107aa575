"""The router objective from the most probable expert and one drawn from the rest."""

import torch
from torch import Tensor

from inference.study.learners.base import MixtureLearner
from inference.study.learners.selected import log_likelihoods_of
from inference.study.learners.unordered_set import log_of_the_others
from prob_moe.distributions.noise import gumbel_noise_like


class SumAndSample(MixtureLearner):
    r"""
    The router objective with the most probable expert t summed over, and one, b, drawn from the rest by p (Liang et al.
    2018, "Memory augmented policy optimization for program synthesis and semantic parsing"; Liu et al. 2019,
    "Rao-Blackwellized stochastic gradients for discrete distributions"). No capacity.

    With likelihoods f the value :math:`p_t f_t + (1 - p_t) f_b` is unbiased for :math:`E_p[f]`, and so is its gradient
    with the one that is kept for a baseline, which makes its own score term 0,

    .. math:: p_t \nabla f_t + (1 - p_t) \nabla f_b + (1 - p_t) (f_b - f_t) \nabla \log p_b.
    """

    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        log_p = self.mixture.router(x).log_softmax(-1)
        return -self.surrogate(x, y, keep_and_draw(log_p.detach()), log_p).mean(-1).sum()

    def surrogate(self, x: Tensor, y: Tensor, chosen: Tensor, log_p: Tensor) -> Tensor:
        """
        :param chosen: t and b, long (*batch, 2, n).
        :param log_p: of all experts, (*batch, n, k).
        :returns: nats, (*batch, n): the value and, by differentiation, the gradient of the estimate.
        """
        kept_f, drawn_f = log_likelihoods_of(self.mixture, x, y, chosen).unbind(-2)
        fixed, top = log_p.detach(), chosen[..., :1, :]
        kept = fixed.mT.gather(-2, top).squeeze(-2).exp()
        rest = log_of_the_others(fixed, top).squeeze(-2).exp()
        score = log_p.mT.gather(-2, chosen[..., 1:, :]).squeeze(-2)
        signal = rest * (drawn_f - kept_f).detach()
        return kept * kept_f + rest * drawn_f + signal * (score - score.detach())


def keep_and_draw(log_p: Tensor) -> Tensor:
    """
    :param log_p: (*batch, n, k).
    :returns: the most probable expert and one of the others, drawn by p, long (*batch, 2, n).
    """
    top = log_p.argmax(-1, keepdim=True)
    rest = (log_p + gumbel_noise_like(log_p)).scatter(-1, top, -torch.inf)
    return torch.cat([top, rest.argmax(-1, keepdim=True)], -1).mT
