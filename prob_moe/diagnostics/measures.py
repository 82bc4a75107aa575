"""Single diagnostics, on tensors."""

import math

import numpy as np
import torch
from torch import Tensor

from prob_moe.distributions.support import router_choices

# All functions but pareto_k are plain tensor expressions: batched over leading dimensions, without waiting for the
# device. Where there is nothing to count (no datapoint, or all of it padding), ratios are 0 instead of NaN.

#: the shortest tail that pareto_k can fit, and the number of weights that have one
LEAST_TAIL = 5
LEAST_WEIGHTS = 21
#: relative differences of weights below this are rounding
TIED = 1e-6


def max_mean_load(loads: Tensor) -> Tensor:
    r"""
    Load of the fullest expert relative to balance, :math:`k \max_j n_j / \sum_j n_j`: 1 when balanced, k at collapse.

    :param loads: processed datapoints per expert, (*, k).
    :returns: (*), 0 where nothing was processed.

    >>> max_mean_load(torch.tensor([2, 6]))
    tensor(1.5000)
    """
    loads = _floating(loads)
    return loads.shape[-1] * loads.amax(-1) / loads.sum(-1).clamp(min=1)


def dead_experts(loads: Tensor) -> Tensor:
    """
    How many experts processed no datapoint.

    :param loads: processed datapoints per expert, (*, k).
    :returns: long (*).
    """
    return (loads == 0).sum(-1)


def usage_perplexity(loads: Tensor) -> Tensor:
    r"""
    Number of experts in effective use, :math:`\exp H(n_j / \sum_j n_j)`: k when balanced, 1 at collapse.

    :param loads: processed datapoints per expert, (*, k). Sum or average them over batches first for the use over all.
    :returns: (*), in [1, k].

    >>> usage_perplexity(torch.tensor([[5, 5, 0], [3, 0, 0]]))
    tensor([2., 1.])
    """
    loads = _floating(loads)
    shares = loads / loads.sum(-1, keepdim=True).clamp(min=1)
    return torch.special.entr(shares).sum(-1).exp()


def drop_rate(value: Tensor, mask: Tensor | None = None) -> Tensor:
    """
    Share of the datapoints that no expert processes.

    :param value: an assignment, long (*, n); negative entries are dropped. One of several experts per datapoint, (*, m,
        n), gives the share that a choice was dropped, (*, m); its ``amax(-2)`` that of datapoints without any expert.
    :param mask: bool, broadcastable to (*, n); False marks padding, which is not counted.
    :returns: (*), in [0, 1].

    >>> drop_rate(torch.tensor([0, 1, ~0, -1]), torch.tensor([True, True, True, False]))
    tensor(0.3333)
    """
    present = _present(value, mask)
    return ((value < 0) & present).sum(-1) / present.sum(-1).clamp(min=1)


def effective_sample_size(weights: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""
    Effective sample size of importance weights per datapoint (Kong, 1992), :math:`(\sum_i w_i)^2 / (n \sum_i w_i^2)`:
    1 for equal weights, 1/n where one datapoint has it all. Dropped datapoints count in n, with weight 0.

    :param weights: (*, n).
    :param mask: bool, broadcastable to (*, n); False marks padding, which is not counted.
    :returns: (*), in [0, 1].

    >>> effective_sample_size(torch.tensor([2.0, 2.0, 0.0, 0.0]))
    tensor(0.5000)
    """
    present = _present(weights, mask)
    weights = weights.masked_fill(~present, 0.0)
    n = present.sum(-1).clamp(min=1)
    # In units of the largest weight, so that no square overflows.
    largest = weights.amax(-1, keepdim=True) if weights.shape[-1] else weights.new_ones(*weights.shape[:-1], 1)
    weights = weights / torch.where(largest > 0, largest, torch.ones_like(largest))
    squares = weights.square().sum(-1)
    return weights.sum(-1).square() / (n * torch.where(squares > 0, squares, torch.ones_like(squares)))


def pareto_k(weights: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""
    Shape of the right tail of importance weights, by a generalized Pareto fit to the largest of them: the number of
    finite moments is about 1/k. Above 0.5 their variance may be infinite, above 0.7 an average of any practical size is
    not to be trusted, above 1 not even the mean exists; bounded weights have k < 0 in the limit of many.

    Source: Vehtari, Simpson, Gelman, Yao & Gabry (2024), "Pareto Smoothed Importance Sampling", section 3; computed by
    ``arviz.psislw``.

    Unlike the other diagnostics it works on the host, row by row: it is for looking at weights afterwards, not for
    inside a step.

    :param weights: (*, n), non-negative. Dropped datapoints count, with weight 0.
    :param mask: bool, broadcastable to (*, n); False marks padding, which is not counted.
    :returns: float64 (*), on the CPU. Minus infinity where the largest weight is shared by so many that it is all of
        the tail, or nothing lies above the cutoff: weights that are all equal, for one. Plus infinity where fewer than
        five lie above it, too few for a fit.
    :raises ValueError: on weights that are negative or not finite, or fewer than 21 in a row: no tail can be fitted.

    >>> generator = torch.Generator().manual_seed(0)
    >>> heavy = torch.rand(10_000, generator=generator) ** -0.8
    >>> pareto_k(heavy)
    tensor(0.8..., dtype=torch.float64)
    >>> pareto_k(torch.ones(100))
    tensor(-inf, dtype=torch.float64)
    """
    # arviz is slow to import, and nothing else here needs it.
    from prob_moe._arviz import az

    present = _present(weights, mask).cpu()
    weights = weights.detach().cpu().double()
    if not bool((torch.isfinite(weights) & (weights >= 0) | ~present).all()):
        raise ValueError(f"weights of shape {tuple(weights.shape)} must be finite and >= 0")
    fewest = int(present.sum(-1).min()) if present.numel() else 0
    if fewest < LEAST_WEIGHTS:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)} have a row of {fewest} datapoints, too few to fit a tail: "
            f"give at least {LEAST_WEIGHTS}, of several draws if need be"
        )
    shapes = []
    n = weights.shape[-1]
    for row, counted in zip(weights.reshape(-1, n), present.reshape(-1, n)):
        log_weights = row[counted].log().numpy()
        # As in psislw: the tail is what lies above this order statistic. Ties, up to rounding, have no shape.
        tail = math.ceil(min(len(log_weights) / 5, 3 * len(log_weights) ** 0.5))
        above = log_weights[log_weights > np.sort(log_weights)[-tail - 1]]
        tied = len(above) == 0 or (len(above) > LEAST_TAIL - 1 and np.ptp(above) < TIED)
        with np.errstate(
            over="ignore"
        ):  # psislw weighs candidates by 1 / exp(difference): an overflow is a weight of 0
            shapes.append(-math.inf if tied else float(az.psislw(log_weights)[1]))
    return torch.tensor(shapes, dtype=torch.float64).reshape(weights.shape[:-1])


def responsibility_entropy(log_joint: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""
    Mean entropy of the responsibilities among the selected experts, :math:`\omega_i = \mathrm{softmax}_j(\log w_{ij} +
    \log p(y_i | j))`: 0 where one of them explains each datapoint, log m where all do equally well.

    :param log_joint: :math:`\log w_{ij} + \log p(y_i | j)`, nats (*, m, n), up to a constant for each datapoint; -inf
        where expert j does not process it.
    :param mask: bool, broadcastable to (*, n); False marks padding, which is not counted.
    :returns: nats, (*): the mean over datapoints that an expert processes.

    >>> responsibility_entropy(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])).exp()
    tensor(1.4142)
    """
    entropies, counted = _responsibility_entropies(log_joint, mask)
    return entropies.sum(-1) / counted.sum(-1).clamp(min=1)


def effective_experts(log_joint: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""
    Effective number of experts of a datapoint, :math:`\exp H(\omega_i)`, in the mean over datapoints that an expert
    processes: from 1, one explains each of them alone, to m.

    Arguments as of :func:`responsibility_entropy`.

    :returns: (*), 0 where nobody is processed.

    >>> effective_experts(torch.tensor([[0.0, 0.0], [0.0, -torch.inf]]))
    tensor(1.5000)
    """
    entropies, counted = _responsibility_entropies(log_joint, mask)
    return entropies.exp().masked_fill(~counted, 0.0).sum(-1) / counted.sum(-1).clamp(min=1)


def _responsibility_entropies(log_joint: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Entropies (*, n), 0 where nothing is counted; and who is: those present whom an expert processes."""
    kept = (log_joint > -torch.inf).any(-2)
    counted = kept & _present(kept, mask)
    omega = log_joint.masked_fill(~counted.unsqueeze(-2), 0.0).softmax(-2)
    return torch.special.entr(omega).sum(-2).masked_fill(~counted, 0.0), counted


def router_entropy(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""
    Mean entropy of the router's distributions, :math:`\frac{1}{n} \sum_i H(p_i)`: 0 when sure, log k when indifferent.

    :param logits: (*, n, k).
    :param mask: bool, broadcastable to (*, n); False marks padding, which is not counted.
    :returns: nats, (*).
    """
    entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
    present = _present(entropy, mask)
    return entropy.masked_fill(~present, 0.0).sum(-1) / present.sum(-1).clamp(min=1)


def agreement(logits: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """
    Share of the datapoints whose drawn expert, dropped or not, is their favourite, the router's most probable one.

    :param logits: (*, n, k).
    :param value: an assignment, long (*, n); a negative entry ``~e`` is a dropped choice of e.
    :param mask: bool, broadcastable to (*, n); False marks padding, which is not counted.
    :returns: (*), in [0, 1].

    >>> agreement(torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, ~1]))
    tensor(0.6667)
    """
    same = router_choices(value) == logits.argmax(-1)
    present = _present(same, mask)
    return (same & present).sum(-1) / present.sum(-1).clamp(min=1)


def _floating(counts: Tensor) -> Tensor:
    return counts if counts.is_floating_point() else counts.to(torch.get_default_dtype())


def _present(like: Tensor, mask: Tensor | None) -> Tensor:
    """Which datapoints are not padding, bool of the shape of ``like`` (*, n)."""
    if mask is None:
        return torch.ones_like(like, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool tensor, got {mask.dtype}; use mask.bool()")
    try:
        return mask.expand(like.shape)
    except RuntimeError:
        raise ValueError(f"mask of shape {tuple(mask.shape)} does not broadcast to {tuple(like.shape)}") from None
