"""Clauses on the importance weights."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from prob_moe.distributions.support import router_choices
from prob_moe.testing.clauses.setting import Setting, expect
from prob_moe.testing.statistics import deviation


def unbiased(setting: Setting) -> str:
    """E[w_i 1{z_i = j}] = p_ij, for every datapoint and expert."""
    worst = 0.0
    for size in setting.sizes:
        routing = setting.routing(size)
        value = routing.sample(torch.Size((setting.num_samples,)))
        weights = routing.importance_weights(value)
        worst = max(worst, expect_unbiased(setting, str(size), value, weights, routing.logits))
    return f"largest deviation {worst:.1f} standard errors"


def expect_unbiased(setting: Setting, where: str, value: Tensor, weights: Tensor, logits: Tensor) -> float:
    """
    :param value: draws (num_draws, n), with their weights (num_draws, n).
    :param logits: (n, k).
    :returns: the largest deviation of E[w_i 1{z_i = j}] from p_ij in standard errors.
    """
    p = logits.softmax(-1)
    indicators = one_hot(router_choices(value), logits.shape[-1])
    # A choice too rare to be seen has sample variance 0: take no less than that of unweighted choices.
    off = deviation(weights.unsqueeze(-1) * indicators, p, least_error=(p * (1 - p) / len(value)).sqrt())
    distance, (i, j) = off.worst()
    mean, error, expected = off.numbers((i, j))
    expect(
        distance < setting.max_standard_errors,
        f"at {where}, E[w 1{{z_{i} = {j}}}] is {mean:.4f} ± {error:.4f}, the router has {expected:.4f}: "
        f"{distance:.1f} standard errors off",
    )
    return distance


def dropped(setting: Setting) -> str:
    """Weights are finite, never negative, and 0 where the datapoint was dropped."""
    num_dropped = 0
    for size in setting.sizes:
        # Forbidden experts make those drop who otherwise need not.
        for logits in (setting.logits(size), setting.constrained_logits(size)):
            routing = setting.make(logits, capacity=size.capacity)
            value = routing.sample(torch.Size((1000,)))
            weights = routing.importance_weights(value)
            expect(torch.isfinite(weights).all(), f"at {size}, a weight is {float(weights.abs().max())}")
            expect((weights >= 0).all(), f"at {size}, a weight is {float(weights.min()):.4g}")
            out = value < 0
            num_dropped += int(out.sum())
            heaviest = float(weights[out].max()) if out.any() else 0.0
            expect(heaviest == 0, f"at {size}, a dropped datapoint has a weight of {heaviest:.4g}")
    return f"{num_dropped} dropped"


def without_gradient(setting: Setting) -> str:
    """Weights are constants for autograd, also where the logits require a gradient."""
    size = setting.sizes[0]
    routing = setting.make(setting.logits(size).requires_grad_(), capacity=size.capacity)
    weights = routing.importance_weights(routing.sample())
    expect(not weights.requires_grad, "the weights require a gradient; compute them under torch.no_grad() or detach")
    return ""
