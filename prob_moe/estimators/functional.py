"""The surrogates themselves: plain functions of tensors, which ELBOs and layers outside of Pyro call alike."""

from collections.abc import Iterable

import torch
from torch import Tensor


def router_surrogate(cost: Tensor, weight: Tensor, scores: Iterable[tuple[Tensor, Tensor | float]]) -> Tensor:
    r"""
    The *router objective*, datapoint by datapoint. With an assignment site (layer) l its value is :math:`w_i f_i`, and
    its gradient that of

    .. math:: \mathrm{sg}(w_i) \Big[ f_i + \sum_l \mathrm{sg}(f_i - b_{il}) \log p_{il}(z_{il}) \Big].

    The baseline is *inside* the weight: outside, the estimator is biased for procedures under which the score
    :math:`\nabla\log p_i(z_i)` has not mean zero. Unbiased where datapoints interact through capacity only, for any
    number of layers, with the product of their weights.

    Source: Kool, Maddison & Mnih (2021), "Unbiased Gradient Estimation with Balanced Assignments for Mixtures of
    Experts".

    :param cost: f, (*batch, n): log-likelihoods, or losses, for the sign plays no part.
    :param weight: w, (*batch, n), product of the importance weights of all layers; where it is 0, nothing counts, not
        even an infinite or undefined cost.
    :param scores: for every layer the router's log-probability log p_i(z_i), (*batch, n), and a baseline b that
        broadcasts to it and does not depend on the datapoint's own experts in this step.
    :returns: (*batch, n).

    >>> logits = torch.zeros(2, 3, requires_grad=True)
    >>> log_p = logits.log_softmax(-1)[:, 0]
    >>> router_surrogate(torch.tensor([1.0, 2.0]), torch.tensor([1.5, 0.0]), [(log_p, 0.0)]).sum().backward()
    >>> logits.grad
    tensor([[ 1.0000, -0.5000, -0.5000],
            [ 0.0000,  0.0000,  0.0000]])
    """
    weight = weight.detach()
    cost = torch.where(weight > 0, cost, torch.zeros_like(cost))
    surrogate = weight * cost
    for log_p, baseline in scores:
        surrogate = surrogate + _gradient_only(weight * (cost - baseline).detach() * log_p)
    return surrogate


def selected_surrogate(cost: Tensor, weight: Tensor, log_p: Tensor, pair_weight: Tensor | None = None) -> Tensor:
    r"""
    The *router objective* from m distinct experts, datapoint by datapoint: value :math:`\sum_j w_{ij} f_{ij}`, and
    gradient

    .. math:: \sum_j w_{ij} \nabla f_{ij} + \tfrac{1}{2} \sum_{a \ne b} w_{iab}\, (f_{ia} - f_{ib})\,
        \nabla(\log p_{ia} - \log p_{ib}).

    Without weights of pairs the second part is :math:`\sum_j w_{ij} f_{ij} \nabla\log p_{ij}`. Both are unbiased.

    :param cost: f, (*batch, m, n).
    :param weight: w = p / pi, (*batch, m, n); where it is 0, nothing counts, not even an infinite or undefined cost.
    :param log_p: the router's log-probabilities of the selected experts, (*batch, m, n).
    :param pair_weight: (*batch, m, m, n), from
        :meth:`~prob_moe.distributions.AssignmentDistribution.pair_weights`; 0 where one of the two was dropped.
    :returns: (*batch, n).
    """
    weight = weight.detach()
    cost = torch.where(weight > 0, cost, torch.zeros_like(cost))
    f = cost.detach()
    if pair_weight is None:
        score = weight * f
    else:
        # Pairs (a, b) and (b, a) say the same, so each expert's score meets its differences once.
        difference = f.unsqueeze(-2) - f.unsqueeze(-3)
        score = torch.where(pair_weight > 0, pair_weight * difference, torch.zeros_like(difference)).sum(-2)
    return (weight * cost + _gradient_only(score * log_p)).sum(-2)


def balanced_surrogate(cost: Tensor, score: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    r"""
    The *balanced objective*, group by group: value f, gradient that of :math:`f + \mathrm{sg}(f - b) \log P(Z)`.
    Unbiased for every cost, also where datapoints interact.

    :param cost: f, (*batch), of all that the assignments of a group can change.
    :param score: (*batch), whose gradient is that of :math:`\log P(Z)`, or has it as its expectation given Z; the sum
        over all layers.
    :param baseline: b, which broadcasts to (*batch) and does not depend on the group's assignments in this step.
    :returns: (*batch).
    """
    return cost + _gradient_only((cost - baseline).detach() * score)


def _gradient_only(term: Tensor) -> Tensor:
    """Zero, with the gradient of the term."""
    return term - term.detach()
