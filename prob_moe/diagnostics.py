"""What a router can do wrong, in numbers: load, drops, use of experts, weights."""

import math
from typing import NamedTuple

import numpy as np
import torch
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution
from prob_moe.distributions.support import router_choices
from prob_moe.estimators.sites import Site

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

    :param value: an assignment, long (*, n); negative entries are dropped.
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


class RoutingDiagnostics(NamedTuple):
    """Diagnostics of one assignment, a tensor (*) each."""

    max_mean_load: Tensor  #: :func:`max_mean_load`
    dead_experts: Tensor  #: :func:`dead_experts`
    usage_perplexity: Tensor  #: :func:`usage_perplexity`
    drop_rate: Tensor  #: :func:`drop_rate`
    weight_ess: Tensor  #: :func:`effective_sample_size` of the importance weights, a share of n
    router_entropy: Tensor  #: :func:`router_entropy`, nats
    agreement: Tensor  #: :func:`agreement` of favourite and drawn expert


@torch.no_grad()
def routing_diagnostics(distribution: AssignmentDistribution, value: Tensor) -> RoutingDiagnostics:
    """
    All diagnostics of a draw.

    Nothing here waits for the device; the weights are the distribution's own, and some of those do.

    :param distribution: the distribution, whose padding mask is respected.
    :param value: a draw from it, long (*sample, *batch, n). Its ``mode`` need not have weights: use the single
        functions on that.
    :raises ValueError: if the value does not fit, or its weights need the noise of another draw.

    >>> from prob_moe.distributions import IndependentRouting
    >>> routing = IndependentRouting(torch.zeros(4, 2))
    >>> routing_diagnostics(routing, torch.tensor([0, 0, 0, 1])).max_mean_load
    tensor(1.5000)
    """
    value = detach_provenance(value)
    if value.dtype != torch.long or value.shape[-1:] != distribution.event_shape:
        raise ValueError(
            f"value must be a long tensor (*, n = {distribution.num_datapoints}), got {value.dtype} of shape "
            f"{tuple(value.shape)}; pass what {type(distribution).__name__} has drawn"
        )
    loads = distribution.loads(value)
    mask = distribution.mask
    entropy = router_entropy(distribution.logits, mask)
    return RoutingDiagnostics(
        max_mean_load=max_mean_load(loads),
        dead_experts=dead_experts(loads),
        usage_perplexity=usage_perplexity(loads),
        drop_rate=drop_rate(value, mask),
        weight_ess=effective_sample_size(distribution.importance_weights(value), mask),
        router_entropy=entropy.expand(torch.broadcast_shapes(entropy.shape, value.shape[:-1])),
        agreement=agreement(distribution.logits, value, mask),
    )


class RoutingRecorder(Messenger):
    """
    Keeps what a model draws at its assignment sites, so that a training step can be looked at afterwards.

    As a context around a step it sees the first draw of every site, whichever ELBO runs the model.

    >>> import pyro
    >>> from prob_moe.distributions import CapacitySkip
    >>> with RoutingRecorder() as recorder:
    ...     _ = pyro.sample("z", CapacitySkip(torch.zeros(6, 2), capacity=3))
    >>> recorder.diagnostics()["z"].dead_experts
    tensor(0)
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws: dict[str, tuple[AssignmentDistribution, Tensor]] = {}

    def __enter__(self) -> "RoutingRecorder":
        self.draws = {}
        return super().__enter__()

    def diagnostics(self) -> dict[str, RoutingDiagnostics]:
        """:returns: the diagnostics of the recorded draws by site."""
        return {name: routing_diagnostics(*draw) for name, draw in self.draws.items()}

    def _pyro_post_sample(self, msg: Site) -> None:
        procedure = msg["fn"]
        # A later one is a replay of the first, or another particle.
        if isinstance(procedure, AssignmentDistribution) and not msg["is_observed"] and msg["name"] not in self.draws:
            self.draws[msg["name"]] = procedure, detach_provenance(msg["value"])


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
