"""Clauses on the importance weights."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from prob_moe.distributions.support import router_choices
from prob_moe.testing.clauses.setting import ClauseSkipped, Setting, expect
from prob_moe.testing.statistics import deviation


def unbiased(setting: Setting) -> str:
    """E[w_i 1{z_i = j}] = p_ij, for every datapoint and expert; the sum over the selected where they are several."""
    worst = 0.0
    for size in setting.sizes:
        routing = setting.routing(size)
        value = routing.sample(torch.Size((setting.num_samples,)))
        weights = routing.importance_weights(value)
        worst = max(worst, expect_unbiased(setting, str(size), value, weights, routing.logits))
    return f"largest deviation {worst:.1f} standard errors"


def expect_unbiased(setting: Setting, where: str, value: Tensor, weights: Tensor, logits: Tensor) -> float:
    """
    :param value: draws (num_draws, n) or (num_draws, m, n), with their weights of the same shape.
    :param logits: (n, k).
    :returns: the largest deviation of E[w_i 1{z_i = j}] from p_ij in standard errors.
    """
    p = logits.softmax(-1)
    indicators = one_hot(router_choices(value), logits.shape[-1])
    weighted = weights.unsqueeze(-1) * indicators
    if value.dim() == 3:
        weighted = weighted.sum(-3)
    # A choice too rare to be seen has sample variance 0: take no less than that of unweighted choices.
    off = deviation(weighted, p, least_error=(p * (1 - p) / len(value)).sqrt())
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


def pairs(setting: Setting) -> str:
    """E[sum over pairs of selected experts of w_ab g(a, b)] = sum over a != b of p_a p_b g(a, b), for every g."""
    worst = 0.0
    for size in setting.sizes:
        routing = setting.routing(size)
        value = routing.sample(torch.Size((setting.num_samples,)))
        try:
            weights = routing.pair_weights(value)
        except NotImplementedError as reason:
            raise ClauseSkipped(f"no pair_weights: {reason}") from None
        expect(not weights.requires_grad, "pair_weights require a gradient; detach them")
        k = size.num_experts
        chosen = one_hot(router_choices(value), k).to(weights.dtype)
        seen = torch.einsum("sabn,sanj,sbnl->snjl", weights, chosen, chosen)
        p = routing.logits.softmax(-1)
        distinct = 1 - torch.eye(k, dtype=p.dtype, device=p.device)
        # One expert makes no pair.
        expected = p.unsqueeze(-1) * p.unsqueeze(-2) * distinct * (weights.shape[-2] > 1)
        # A pair too rare to be seen has sample variance 0: take no less than that of unweighted pairs.
        off = deviation(seen, expected, least_error=(expected / len(value)).sqrt())
        distance, (i, a, b) = off.worst()
        mean, error, wanted = off.numbers((i, a, b))
        expect(
            distance < setting.max_standard_errors,
            f"at {size}, the weights of experts {a} and {b} of datapoint {i} have the mean {mean:.4f} ± {error:.4f}, "
            f"p_a p_b is {wanted:.4f}: {distance:.1f} standard errors off",
        )
        worst = max(worst, distance)
    return f"largest deviation {worst:.1f} standard errors"


def kept(setting: Setting) -> str:
    """E[1{i keeps an expert} / keep_probability] = 1 for every datapoint, and 1 where nobody can be dropped."""
    worst, num_dropped = 0.0, 0
    for size in setting.sizes:
        routing = setting.routing(size)
        value = routing.sample(torch.Size((setting.num_samples,)))
        try:
            kappa = routing.keep_probability(value)
        except NotImplementedError as reason:
            raise ClauseSkipped(f"no keep_probability: {reason}") from None
        expect(((kappa > 0) & (kappa <= 1)).all(), f"at {size}, a keep_probability is {float(kappa.min()):.4g}")
        keeps = (value >= 0) if value.dim() == 2 else (value >= 0).any(-2)
        num_dropped += int((~keeps).sum())
        # None is judged as if fewer than 25 drops were expected.
        off = deviation(keeps / kappa, torch.ones_like(kappa[0]), least_error=5 / len(value))
        distance, (i,) = off.worst()
        mean, error, _ = off.numbers((i,))
        expect(
            distance < setting.max_standard_errors,
            f"at {size}, datapoint {i} is kept {mean:.4f} ± {error:.4f} times as often as keep_probability says: "
            f"{distance:.1f} standard errors off",
        )
        worst = max(worst, distance)
    return f"{num_dropped} dropped, largest deviation {worst:.1f} standard errors"
