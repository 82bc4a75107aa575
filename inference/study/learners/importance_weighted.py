"""The bound of some experts drawn independently."""

import math

import torch
from torch import Tensor
from torch.distributions import Categorical

from inference.study.learners.base import MixtureLearner
from inference.study.learners.selected import log_likelihoods_of
from prob_moe.mixture import MixtureOfExperts


class ImportanceWeighted(MixtureLearner):
    """
    The bound of some experts drawn independently (IWAE, Burda et al. 2016), with its score function and the others'
    bound as baseline (VIMCO, Mnih & Rezende 2016). No capacity.

    :param num_samples: experts of every datapoint, which may coincide.
    """

    def __init__(self, mixture: MixtureOfExperts, load_balancing: float = 0.0, num_samples: int = 2) -> None:
        super().__init__(mixture, load_balancing)
        self.num_samples = num_samples

    def minus_objective(self, x: Tensor, y: Tensor) -> Tensor:
        log_p = self.mixture.router(x).log_softmax(-1)
        drawn = Categorical(logits=log_p.detach()).sample((self.num_samples,)).movedim(0, -2)
        return -self.surrogate(x, y, drawn, log_p).mean(-1).sum()

    def surrogate(self, x: Tensor, y: Tensor, chosen: Tensor, log_p: Tensor) -> Tensor:
        """
        :param chosen: the draws, long (*batch, m, n).
        :param log_p: of all experts, (*batch, n, k).
        :returns: nats, (*batch, n): the value and, by differentiation, the gradient of the estimate.
        """
        f = log_likelihoods_of(self.mixture, x, y, chosen).mT
        bound = f.logsumexp(-1) - math.log(self.num_samples)
        # The bound with one sample replaced by the geometric mean of the others.
        held = f.detach()
        others = (held.sum(-1, keepdim=True) - held) / (self.num_samples - 1)
        each = torch.eye(self.num_samples, dtype=torch.bool, device=x.device)
        replaced = torch.where(each, others.unsqueeze(-1), held.unsqueeze(-2)).logsumexp(-1)
        signal = bound.detach().unsqueeze(-1) - (replaced - math.log(self.num_samples))
        score = (signal * log_p.gather(-1, chosen.mT)).sum(-1)
        return bound + score - score.detach()
