"""The router objective from two distinct experts, drawn without replacement."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from inference.study.learners.base import MixtureLearner
from inference.study.learners.selected import log_likelihoods_of
from prob_moe.distributions.noise import gumbel_noise_like


class UnorderedSet(MixtureLearner):
    r"""
    The router objective by the unordered-set estimator (Kool, van Hoof & Welling 2020, "Estimating gradients for
    discrete random variables by sampling without replacement"), with two experts. No capacity.

    The set {a, b} of the two largest Gumbel-perturbed logits has the law of Plackett and Luce. With
    :math:`q_a = 1 - p_a` and likelihoods f the value is unbiased for :math:`E_p[f]`,

    .. math:: \frac{q_b f_a + q_a f_b}{q_a + q_b},

    and so is its gradient with the built-in baseline, which for each expert comes from the other one,

    .. math:: \frac{q_b \nabla f_a + q_a \nabla f_b}{q_a + q_b}
        + \frac{q_a q_b}{q_a + q_b} (f_a - f_b) \nabla (\log p_a - \log p_b).
    """

    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        log_p = self.mixture.router(x).log_softmax(-1)
        return -self.surrogate(x, y, draw_two(log_p.detach()), log_p).mean(-1).sum()

    def surrogate(self, x: Tensor, y: Tensor, chosen: Tensor, log_p: Tensor) -> Tensor:
        """
        :param chosen: the set, long (*batch, 2, n).
        :param log_p: of all experts, (*batch, n, k).
        :returns: nats, (*batch, n): the value and, by differentiation, the gradient of the estimate.
        """
        f = log_likelihoods_of(self.mixture, x, y, chosen)
        log_q = log_of_the_others(log_p.detach(), chosen)
        weights = log_q.flip(-2).softmax(-2)
        score = log_p.mT.gather(-2, chosen).diff(dim=-2).squeeze(-2)
        factor = (log_q.sum(-2) - log_q.logsumexp(-2)).exp() * f.detach().diff(dim=-2).squeeze(-2)
        return (weights * f).sum(-2) + factor * (score - score.detach())


def draw_two(log_p: Tensor) -> Tensor:
    """
    Two distinct experts of every datapoint by Gumbel-top-2.

    :param log_p: (*batch, n, k).
    :returns: in the order of the draw, long (*batch, 2, n).
    """
    return (log_p + gumbel_noise_like(log_p)).topk(2, -1).indices.mT


def log_of_the_others(log_p: Tensor, chosen: Tensor) -> Tensor:
    """
    log(1 - p) of chosen experts, as the sum of all others: 1 - p of a saturated router would be 0.

    :param log_p: (*batch, n, k).
    :param chosen: long (*batch, m, n).
    :returns: nats, (*batch, m, n).
    """
    own = one_hot(chosen, log_p.shape[-1]).bool()
    return log_p.unsqueeze(-3).masked_fill(own, -torch.inf).logsumexp(-1)
