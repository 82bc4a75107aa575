"""What a layer of experts in a Pyro model is made of, whatever the model around it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from prob_moe.distributions.checks import check_mask
from prob_moe.estimators.baselines import Baseline, Network
from prob_moe.estimators.site_baselines import check_baseline_options
from prob_moe.experts import BatchedExperts, ModuleExperts, SlotExperts, StackedExperts
from prob_moe.padding import blank
from prob_moe.parallel.experts import ParallelExperts
from prob_moe.parallel.mesh import agree, fingerprint
from prob_moe.rules import RoutingRule


def check_datapoints(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """
    :param x: datapoints, (*batch, n, d).
    :param mask: bool, broadcastable to (*batch, n), False for padding.
    :returns: x with zeros in padding, and the mask of shape (*batch, n).
    :raises ValueError: on another shape, or no datapoints.
    """
    if x.dim() < 2 or not x.shape[-2]:
        raise ValueError(f"x must have shape (*batch, n, d) with n >= 1 datapoints, got {tuple(x.shape)}")
    mask = check_mask(mask, x)
    return blank(x, mask), mask


def check_experts(experts: object) -> None:
    """
    :raises ValueError: if experts are not one module with ``forward`` and ``dense``.
    """
    if not isinstance(experts, nn.Module) or not callable(getattr(experts, "dense", None)):
        raise ValueError(
            "experts must be a BatchedExperts, or one module with its forward and dense (experts of different forms do "
            f"not stack), got {type(experts).__name__}"
        )


def baseline_infer(baseline: Baseline | nn.Module | dict[str, Any] | None, x: Tensor) -> dict[str, Any]:
    """
    The ``infer`` of an assignment site: a baseline or Pyro's options as given, or a module that predicts from x.

    :raises ValueError: on anything else, or an unknown option.
    """
    if baseline is None:
        return {}
    if isinstance(baseline, nn.Module) and not isinstance(baseline, Baseline):
        return {"baseline": Network(baseline, x)}
    if not isinstance(baseline, dict | Baseline):
        raise ValueError(
            "baseline must be None, a module (*batch, n, d) -> (*batch, n), or a dict of options such as "
            f'{{"use_decaying_avg_baseline": True}}, or a Baseline object, got {baseline!r}'
        )
    check_baseline_options("baseline", baseline)
    return {"baseline": baseline}


def router_logits(
    router: nn.Module, x: Tensor, experts: nn.Module, rule: RoutingRule | None = None, seen: Tensor | None = None
) -> Tensor:
    """
    :param x: (*batch, n, d).
    :param rule: that wants the logits; None for a distribution, which wants one for each expert.
    :param seen: what the router sees in the place of x.
    :returns: logits (*batch, n, k), or of the width that the rule wants.
    :raises ValueError: on another width.
    """
    logits: Tensor = router(x if seen is None else seen)
    k = getattr(experts, "num_experts", logits.shape[-1])
    width = k if rule is None else rule.num_logits(k)
    if logits.shape[-2:] != (x.shape[-2], width):
        wanted = f"k = {k} experts" if rule is None else f"k = {width}, as {type(rule).__name__} wants them"
        raise ValueError(
            f"router must return logits of shape (*batch, n, k) with n = {x.shape[-2]} and {wanted}, got "
            f"{tuple(logits.shape)}"
        )
    return logits


def slots_for(experts: nn.Module, x: Tensor, limit: int | None) -> int | None:
    """
    :param limit: the most datapoints that an expert can get, or None.
    :returns: the slots to give to every expert; None for experts that look at the loads, and do what is fastest.
    """
    if isinstance(experts, ParallelExperts):
        # The loads of other processes are asked for only where nothing else bounds them.
        return limit if experts.layout.num_pieces > 1 else slots_for(experts.local, x, limit)
    # A processor has the loads at once. Another device would wait for them, and slots within the limit waste little.
    if isinstance(experts, BatchedExperts | SlotExperts) and (limit is None or not x.is_cuda):
        return None
    return x.shape[-2] if limit is None else limit


def combine_by_gates(out: Tensor, log_p: Tensor, assignment: Tensor) -> Tensor:
    r"""
    One output of several experts, :math:`\sum_j g_{ij} f_j(x_i)` with gates :math:`g_{ij} \propto p_{ij}` that sum to 1
    over the experts that process the datapoint.

    :param out: (*, m, n, out), zeros (x, for experts with ``residual``) where dropped.
    :param log_p: log-probabilities of the selected experts, nats (*, m, n), with the router's gradient.
    :param assignment: (*, m, n).
    :returns: (*, n, out); where all experts dropped the datapoint, zeros (x, for experts with ``residual``).
    """
    processed = assignment >= 0
    scores = log_p.masked_fill(~processed, -torch.inf)
    # Where nobody processes, all m outputs are the same, and any gates will do.
    gates = torch.where(processed.any(-2, keepdim=True), scores, torch.zeros_like(scores)).softmax(-2)
    return (gates.to(out.dtype).unsqueeze(-1) * out).sum(-3)


def likelihood_of(outputs: Tensor, likelihood: Callable[[Tensor], TorchDistribution]) -> TorchDistribution:
    """
    :param outputs: of experts, (*batch, out).
    :returns: the likelihood, of batch shape (*batch).
    :raises ValueError: if its batch shape is another, so that observations would broadcast to n x n.
    """
    law = likelihood(outputs)
    if law.batch_shape != outputs.shape[:-1]:
        raise ValueError(
            f"likelihood must return batch shape {tuple(outputs.shape[:-1])} for outputs of shape "
            f"{tuple(outputs.shape)}, got {tuple(law.batch_shape)}; use out.squeeze(-1), or .to_event(1) for vectors"
        )
    return law


def check_observations(y: Tensor, event_shape: torch.Size, num_datapoints: int) -> None:
    """
    :param y: observations, (*batch, n, *event).
    :raises ValueError: on another shape, which would broadcast to n x n.
    """
    row = (num_datapoints, *event_shape)
    if y.shape[max(y.dim() - len(row), 0) :] != row:
        raise ValueError(
            f"y must have shape (*batch, {', '.join(map(str, row))}) for n = {num_datapoints} datapoints, got "
            f"{tuple(y.shape)}"
        )


def rule_of(assignment: Any, capacity: int | None, capacity_factor: float | None) -> RoutingRule | None:
    """:returns: the rule that is meant, None for a distribution."""
    given = {"capacity": capacity, "capacity_factor": capacity_factor}
    given = {name: value for name, value in given.items() if value is not None}
    if isinstance(assignment, RoutingRule):
        if given:
            name = type(assignment).__name__
            raise ValueError(f"{given} are given to the layer, and {name} brings its own: give its class, or a partial")
        return assignment
    kind = assignment.func if isinstance(assignment, partial) else assignment
    if isinstance(kind, type) and issubclass(kind, RoutingRule):
        try:
            rule: RoutingRule = assignment(**given)
        except TypeError as error:
            raise ValueError(f"{kind.__name__} cannot be made with {given}: {error}") from None
        return rule
    if not callable(assignment) or isinstance(assignment, nn.Module):
        raise ValueError(f"assignment must be a distribution, a callable that makes one, or a rule, got {assignment!r}")
    return None


def experts_of(experts: Any, router: nn.Module | None) -> BatchedExperts | SlotExperts:
    """:returns: experts in the form that routings use, whatever was given to a layer."""
    if isinstance(experts, BatchedExperts | SlotExperts):
        return experts
    if isinstance(experts, nn.ModuleList) or (isinstance(experts, Sequence) and not isinstance(experts, str)):
        return StackedExperts(list(experts))
    if not isinstance(experts, nn.Module):
        raise ValueError(f"experts must be a BatchedExperts, a list of modules or a module, got {experts!r}")
    num_experts = getattr(experts, "num_experts", None) or getattr(router, "out_features", None)
    if num_experts is None:
        raise ValueError(
            f"experts of type {type(experts).__name__} do not say how many they are: give them an attribute num_experts"
        )
    return ModuleExperts(experts, num_experts)


def linear_router(experts: BatchedExperts | SlotExperts, rule: RoutingRule | None) -> nn.Module:
    """:returns: a linear router with as many logits as the experts, and the rule, want."""
    columns = experts.num_experts if rule is None else rule.num_logits(experts.num_experts)
    if isinstance(experts, BatchedExperts):
        weight = experts.output.weight
        return nn.Linear(experts.in_features, columns, device=weight.device, dtype=weight.dtype)
    like = next(iter(experts.parameters()), torch.empty(0))
    return nn.LazyLinear(columns, device=like.device, dtype=like.dtype)


def divided(
    experts: BatchedExperts | SlotExperts, router: nn.Module, rule: RoutingRule | None, mesh: DeviceMesh
) -> ParallelExperts:
    """
    :returns: the experts, of which this process keeps its own.
    :raises NotImplementedError: for a rule that needs the parameters of all experts.
    :raises ValueError: in all processes, if experts, router or rule differ between them, see
        :class:`~prob_moe.parallel.ParallelExperts`.
    """
    if rule is not None and rule.merges_parameters:
        raise NotImplementedError(
            f"{type(rule).__name__} merges the parameters of all experts, which no process of a mesh has: give no mesh"
        )
    parallel = ParallelExperts(experts, mesh)  # type: ignore[arg-type]
    form = " ".join(f"{router!r} {rule!r}".split())
    agree(router_and_rule=form, initial_values_of_the_router=fingerprint(router))
    return parallel
