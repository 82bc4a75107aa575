"""The mixture as a predictive distribution: routing summed out, nobody dropped."""

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from prob_moe.experts.validation import check_positive_int


def most_probable(log_p: Tensor, out: Tensor, num_selected: int | None) -> tuple[Tensor, Tensor]:
    """
    The m most probable experts of every datapoint, with their probabilities renormalised.

    :param log_p: router log-probabilities, (*, n, k).
    :param out: outputs of all experts, (*, n, k, out).
    :param num_selected: m, or None for all.
    :returns: both, for m experts.
    :raises ValueError: if m is no int from 1 to k.
    """
    if num_selected is None:
        return log_p, out
    check_positive_int("num_selected", num_selected)
    k = log_p.shape[-1]
    if num_selected > k:
        raise ValueError(f"num_selected={num_selected} must be at most k = {k}, the number of experts")
    chosen = log_p.topk(num_selected, -1)
    index = chosen.indices.unsqueeze(-1).expand(*chosen.indices.shape, out.shape[-1])
    out = out.expand(*log_p.shape, out.shape[-1])
    return chosen.values.log_softmax(-1), out.gather(-2, index)


def mix(log_p: Tensor, components: TorchDistribution) -> TorchDistribution:
    r"""
    The law :math:`\sum_j p_j \cdot \mathrm{component}_j`.

    :param log_p: normalised, nats, (*, n, k).
    :param components: batch shape (*, n, k).
    :returns: batch shape (*, n). Classes stay a ``Categorical``, with the mixture's ``probs``; the rest is a
        ``MixtureSameFamily``.
    """
    if isinstance(components, dist.Categorical):
        return dist.Categorical(logits=(log_p.unsqueeze(-1) + components.logits).logsumexp(-2))
    log_p = log_p.expand(components.batch_shape)
    mixture: TorchDistribution = dist.MixtureSameFamily(dist.Categorical(logits=log_p), components)
    return mixture
