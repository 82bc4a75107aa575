"""An estimator's gradients against the exact ones."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from prob_moe.diagnostics import LEAST_WEIGHTS, RoutingRecorder, pareto_k
from prob_moe.estimators.per_datapoint_elbo import PerDatapointELBO
from prob_moe.estimators.sites import Program, no_guide
from prob_moe.testing.report import GradientReport, GradientRow

#: calls whose weights are kept for an estimate of their tail
WEIGHT_CALLS = 200
#: Trace_ELBO goes backward only if a trace holds a parameter; this one stands in for those of plain modules.
_PARAMETER = "prob_moe.testing.gradient_report"

Exact = Callable[..., Tensor] | Mapping[str, Tensor]


def gradient_report(
    model: Program,
    guide: Program | None,
    elbo: Any,
    *args: Any,
    exact: Exact,
    parameters: Mapping[str, Tensor] | nn.Module | None = None,
    num_samples: int = 1000,
    replicas: int = 1,
    max_standard_errors: float = 5.0,
    seed: int = 0,
    **kwargs: Any,
) -> GradientReport:
    r"""
    Compare the gradients of an ELBO with the exact ones.

    All gradients here are of the *objective*, not of the loss that Pyro minimises: the estimate of one draw is minus
    what ``elbo.loss_and_grads`` leaves in ``.grad``. Any of Pyro's ELBOs will do, with Pyro parameters and with those
    of modules; for constrained parameters the gradient is that of the unconstrained value. Random state and gradients
    of the caller are left as they were.

    The verdict is withheld where the importance weights have no variance: by their law, as those of
    :class:`~prob_moe.distributions.GumbelMatching` at capacity 1, or, where no law is known, by an estimated Pareto k.

    :param model: as for the ELBO.
    :param guide: as for the ELBO; None where it takes none.
    :param elbo: an object with ``loss_and_grads``.
    :param args: of model and guide.
    :param exact: the exact objective as a function of ``args`` and ``kwargs``, a scalar that depends on the same
        parameters and is differentiated by autograd (:func:`~prob_moe.testing.exact_router_objective`,
        :func:`~prob_moe.testing.exact_balanced_objective` and :func:`~prob_moe.testing.exact_mixture_objective`
        compute it for small models); or its gradients by the names of the parameters.
    :param parameters: leaf tensors by name, or a module; by default, all that model and guide have.
    :param num_samples: gradients to draw, at least 100.
    :param replicas: for speed: every parameter has a leading dimension of this many copies of one problem, which the
        model runs in a plate, so that one call gives this many independent draws. An ``exact`` objective sums over the
        copies; ``exact`` gradients are those of one copy.
    :param max_standard_errors: the largest bias of a coordinate that passes as unbiased.
    :param seed: of the draws.
    :param kwargs: of model and guide.
    :raises ValueError: if there are no parameters, one of them is no leaf, or the exact gradients do not fit them.

    >>> from prob_moe.distributions import CapacitySkip
    >>> from prob_moe.estimators import TraceRouting_ELBO
    >>> from prob_moe.testing import exact_router_objective
    >>> start = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(4, 2)
    >>> def model():
    ...     z = pyro.sample("z", CapacitySkip(pyro.param("logits", start), capacity=2))
    ...     with pyro.plate("data", 4):
    ...         pyro.factor("f", 10.0 * torch.where(z < 0, ~z, z))
    >>> exact = lambda: exact_router_objective(model)
    >>> gradient_report(model, lambda: None, TraceRouting_ELBO(), exact=exact, num_samples=300).verdict
    'unbiased within 5 standard errors'
    >>> biased = TraceRouting_ELBO(weighted=False)
    >>> gradient_report(model, lambda: None, biased, exact=exact, num_samples=300).unbiased
    False
    """
    if num_samples < 100:
        raise ValueError(f"num_samples must be at least 100 for standard errors to mean something, got {num_samples}")
    if replicas < 1:
        raise ValueError(f"replicas must be at least 1, got {replicas}")
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        leaves = _leaves(model, guide, args, kwargs, parameters, replicas)
        expected = _exact_gradients(exact, leaves, args, kwargs, replicas)
        draws, law, estimate = _draws(elbo, model, guide, args, kwargs, leaves, num_samples, replicas)
    rows = [GradientRow.of(name, draws[name], expected[name]) for name in leaves]
    everything = torch.cat([d.reshape(len(d), -1).double() for d in draws.values()], -1)
    total = GradientRow.of("total", everything, torch.cat([e.flatten().double() for e in expected.values()]))
    return GradientReport(tuple(rows), total, len(everything), max_standard_errors, law, estimate)


def _leaves(
    model: Program,
    guide: Program | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    parameters: Mapping[str, Tensor] | nn.Module | None,
    replicas: int,
) -> dict[str, Tensor]:
    leaves: dict[str, Tensor]
    if isinstance(parameters, nn.Module):
        leaves = dict[str, Tensor](parameters.named_parameters())
    elif parameters is not None:
        leaves = dict(parameters)
    else:
        leaves = _all_parameters(model, guide, args, kwargs)
    if not leaves:
        raise ValueError("model and guide have no parameters; name those of closures by parameters={name: tensor}")
    for name, leaf in leaves.items():
        if not leaf.is_leaf or not leaf.requires_grad:
            raise ValueError(f"parameter {name!r} must be a leaf tensor that requires a gradient")
        if replicas > 1 and leaf.shape[:1] != (replicas,):
            raise ValueError(
                f"parameter {name!r} of shape {tuple(leaf.shape)} must have replicas = {replicas} copies in front"
            )
    return leaves


def _all_parameters(
    model: Program, guide: Program | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Tensor]:
    """Those of modules under their own names, then those that only Pyro knows, each once."""
    with torch.no_grad(), poutine.block():
        guide_trace = poutine.trace(no_guide if guide is None else guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    leaves: dict[str, Tensor] = {}
    seen: set[int] = set()
    for program in (model, guide):
        if isinstance(program, nn.Module):
            named = [(name, leaf) for name, leaf in program.named_parameters() if id(leaf) not in seen]
            leaves.update(named)
            seen |= {id(leaf) for _, leaf in named}
    store = dict(pyro.get_param_store().named_parameters())
    for trace in (model_trace, guide_trace):
        for name in trace.param_nodes:
            if id(store[name]) not in seen:
                leaves[name] = store[name]
                seen.add(id(store[name]))
    return leaves


def _exact_gradients(
    exact: Exact, leaves: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], replicas: int
) -> dict[str, Tensor]:
    if callable(exact):
        objective = exact(*args, **kwargs)
        found = torch.autograd.grad(objective, list(leaves.values()), allow_unused=True)
        pairs = zip(leaves.items(), found, strict=True)
        gradients = {name: torch.zeros_like(leaf) if g is None else g for (name, leaf), g in pairs}
        return {name: g[0] if replicas > 1 else g for name, g in gradients.items()}
    for name, leaf in leaves.items():
        shape = leaf.shape[1:] if replicas > 1 else leaf.shape
        if name not in exact:
            raise ValueError(f"exact has no gradient for parameter {name!r}; it has {sorted(exact)}")
        if exact[name].shape != shape:
            raise ValueError(
                f"the exact gradient of {name!r} has shape {tuple(exact[name].shape)} instead of {tuple(shape)}"
            )
    return {name: exact[name].detach() for name in leaves}


def _draws(
    elbo: Any,
    model: Program,
    guide: Program | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: dict[str, Tensor],
    num_samples: int,
    replicas: int,
) -> tuple[dict[str, Tensor], float | None, float | None]:
    """
    :returns: gradients of the objective by parameter, (num_samples or a few more, *shape); and the Pareto k of the
        weights that they were multiplied by, by their law and as estimated.
    """
    # The others multiply by no weights.
    weighted = isinstance(elbo, PerDatapointELBO) and getattr(elbo, "weighted", True)
    recorder = RoutingRecorder()
    laws: set[float | None] = set()
    weights: list[Tensor] = []

    def with_parameter(*args: Any, **kwargs: Any) -> Any:
        pyro.param(_PARAMETER, torch.zeros(()))
        return model(*args, **kwargs)

    before = {name: leaf.grad for name, leaf in leaves.items()}
    drawn: dict[str, list[Tensor]] = {name: [] for name in leaves}
    try:
        for _ in range(-(-num_samples // replicas)):
            for leaf in leaves.values():
                leaf.grad = None
            with recorder:
                elbo.loss_and_grads(with_parameter, guide, *args, **kwargs)
            if weighted and len(weights) < WEIGHT_CALLS:
                laws |= {routing.weight_pareto_k for routing, _ in recorder.draws.values()}
                weights += _weights(recorder)
            for name, leaf in leaves.items():
                gradient = torch.zeros_like(leaf) if leaf.grad is None else -leaf.grad
                drawn[name].append(gradient if replicas > 1 else gradient.unsqueeze(0))
    finally:
        for name, leaf in leaves.items():
            leaf.grad = before[name]
        if _PARAMETER in pyro.get_param_store():
            del pyro.get_param_store()[_PARAMETER]
    # The heaviest tail of all sites decides; one that is unknown may be heavier than those that are not.
    law = None if None in laws else max((k for k in laws if k is not None), default=-math.inf)
    pooled = torch.cat(weights) if weights else torch.ones(0)
    estimate = float(pareto_k(pooled)) if len(pooled) >= LEAST_WEIGHTS else None
    return {name: torch.cat(gradients) for name, gradients in drawn.items()}, law, estimate


@torch.no_grad()
def _weights(recorder: RoutingRecorder) -> list[Tensor]:
    """Of all present datapoints, multiplied over layers where these have the same datapoints."""
    of_sites = []
    for routing, z in recorder.draws.values():
        weights = routing.importance_weights(z)
        mask = routing.mask
        if mask is not None and routing.num_selected is not None:
            mask = mask.unsqueeze(-2)
        of_sites.append(weights.flatten() if mask is None else weights[mask.expand(weights.shape)])
    if len({weights.shape for weights in of_sites}) == 1:
        return [torch.stack(of_sites).prod(0)]
    return of_sites
