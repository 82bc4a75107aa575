"""Random routing: a fresh expert for every datapoint and step, whatever the router says."""

import torch
from torch import Tensor

from prob_moe.distributions.noise import uniform_noise
from prob_moe.rules.base import RoutingRule, SparseRouting
from prob_moe.rules.hash_routing import HashRouting


class RandomRouting(RoutingRule):
    r"""
    Every datapoint draws its expert uniformly, anew in every step: :math:`y_i = f_e(x_i)`, :math:`e \sim
    \mathrm{Uniform}\{0, \dots, k - 1\}`.

    The logits give shape, dtype and number of experts; their values play no part, and a router gets no gradient.
    Serving draws nothing: a datapoint's expert is then a fixed pseudo-random function of its place among those that are
    present, :class:`~prob_moe.rules.HashRouting` of it. Any expert will do, as all learn the same task; what is gained
    over this line is gained by choosing.

    **Objective:** :math:`E_e[L(f_e)]` under uniform e, for whose experts the gradient is unbiased (without a capacity).

    **Source:** Zuo et al. (2022), "Taming sparsely activated transformer with stochastic experts", without its
    consistency loss.

    :param capacity: the most datapoints of one batch that an expert processes; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.

    >>> RandomRouting().eval()(torch.zeros(6, 2)).assignment.unique()
    tensor([0, 1])
    """

    objective = "uniform E_e[L(f_e)], no router"

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        logits, mask = self.prepare(logits, mask)
        *batch, n, k = logits.shape
        if self.training:
            choices = uniform_choices(logits)
        else:
            present = torch.ones(*batch, n, dtype=torch.long, device=logits.device) if mask is None else mask.long()
            choices = HashRouting().choose(present.cumsum(-1), k)
        choices = choices.unsqueeze(-2)
        return self.to_experts(logits, mask, choices, logits.new_ones(choices.shape))

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return logits.new_ones(choices.shape), None


def uniform_choices(logits: Tensor) -> Tensor:
    """
    :param logits: (*batch, n, k), whose values play no part.
    :returns: an expert for every datapoint, long (*batch, n).
    """
    return uniform_noise(logits.shape[:-1], logits.device).mul(logits.shape[-1]).long()
