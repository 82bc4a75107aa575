"""All diagnostics of a draw, and of the draws of a training step."""

from typing import NamedTuple

import torch
from pyro.ops.provenance import detach_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor

from prob_moe.diagnostics.measures import (
    agreement,
    dead_experts,
    drop_rate,
    effective_sample_size,
    max_mean_load,
    router_entropy,
    usage_perplexity,
)
from prob_moe.distributions import AssignmentDistribution, SelectedMixture
from prob_moe.estimators.sites import Site


class RoutingDiagnostics(NamedTuple):
    """Diagnostics of one assignment, a tensor (*) each."""

    max_mean_load: Tensor  #: :func:`max_mean_load`
    dead_experts: Tensor  #: :func:`dead_experts`
    usage_perplexity: Tensor  #: :func:`usage_perplexity`
    drop_rate: Tensor  #: :func:`drop_rate`
    weight_ess: Tensor  #: :func:`effective_sample_size` of the importance weights, a share of their number
    router_entropy: Tensor  #: :func:`router_entropy`, nats
    agreement: Tensor  #: :func:`agreement` of favourite and drawn expert; of several, whether it is among them


@torch.no_grad()
def routing_diagnostics(distribution: AssignmentDistribution, value: Tensor) -> RoutingDiagnostics:
    """
    All diagnostics of a draw.

    Nothing here waits for the device; the weights are the distribution's own, and some of those do.

    :param distribution: the distribution, whose padding mask is respected.
    :param value: a draw from it, long (*sample, *batch) + event shape: (n,), or (m, n) with several experts. Its
        ``mode`` need not have weights: use the single functions on that.
    :raises ValueError: if the value does not fit, or its weights need the noise of another draw.

    >>> from prob_moe.distributions import IndependentRouting
    >>> routing = IndependentRouting(torch.zeros(4, 2))
    >>> routing_diagnostics(routing, torch.tensor([0, 0, 0, 1])).max_mean_load
    tensor(1.5000)
    """
    value = detach_provenance(value)
    event_shape = distribution.event_shape
    if value.dtype != torch.long or value.shape[value.dim() - len(event_shape) :] != event_shape:
        raise ValueError(
            f"value must be a long tensor (*sample, *batch) + {tuple(event_shape)}, got {value.dtype} of shape "
            f"{tuple(value.shape)}; pass what {type(distribution).__name__} has drawn"
        )
    loads = distribution.loads(value)
    mask = distribution.mask
    weights = distribution.importance_weights(value)
    entropy = router_entropy(distribution.logits, mask)
    if distribution.num_selected is None:
        weight_ess = effective_sample_size(weights, mask)
        dropped, favourite = drop_rate(value, mask), agreement(distribution.logits, value, mask)
    else:
        entry_mask = None if mask is None else mask.unsqueeze(-2).expand(weights.shape).flatten(-2)
        weight_ess = effective_sample_size(weights.flatten(-2), entry_mask)
        dropped = drop_rate(value.amax(-2), mask)  # all of its entries are negative
        favourite = agreement(distribution.logits.unsqueeze(-3), value, _of_entries(mask)).sum(-1)
    return RoutingDiagnostics(
        max_mean_load=max_mean_load(loads),
        dead_experts=dead_experts(loads),
        usage_perplexity=usage_perplexity(loads),
        drop_rate=dropped,
        weight_ess=weight_ess,
        router_entropy=entropy.expand(loads.shape[:-1]),
        agreement=favourite,
    )


def _of_entries(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.unsqueeze(-2)


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
        #: by observed site with several experts per datapoint, log w + log p(y | j), nats (*, m, n); -inf where dropped
        self.log_joint: dict[str, Tensor] = {}

    def __enter__(self) -> "RoutingRecorder":
        self.draws, self.log_joint = {}, {}
        return super().__enter__()

    def diagnostics(self) -> dict[str, RoutingDiagnostics]:
        """:returns: the diagnostics of the recorded draws by site."""
        return {name: routing_diagnostics(*draw) for name, draw in self.draws.items()}

    def _pyro_post_sample(self, msg: Site) -> None:
        procedure = msg["fn"]
        if msg["is_observed"]:
            self._record_responsibilities(msg)
        # A later one is a replay of the first, or another particle.
        if isinstance(procedure, AssignmentDistribution) and not msg["is_observed"] and msg["name"] not in self.draws:
            self.draws[msg["name"]] = procedure, detach_provenance(msg["value"])

    @torch.no_grad()
    def _record_responsibilities(self, msg: Site) -> None:
        law = msg["fn"]
        while hasattr(law, "base_dist"):
            law = law.base_dist
        if isinstance(law, SelectedMixture) and msg["name"] not in self.log_joint:
            log_joint = law.log_weights + law.selected_log_prob(msg["value"])
            self.log_joint[msg["name"]] = detach_provenance(log_joint)
