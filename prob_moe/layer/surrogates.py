"""The losses made of what layers drew outside of Pyro: the ELBOs' own formulas, on the visits of a network."""

import torch
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution, mixture_bound
from prob_moe.estimators.baselines import Baseline
from prob_moe.estimators.functional import balanced_surrogate, router_surrogate
from prob_moe.layer.records import Visit


def router(loss: Tensor, visits: list[Visit]) -> Tensor:
    """:returns: the surrogate of the router objective, (*batch, n), for losses (*batch, n)."""
    drawn = [(visit, *visit.drawn) for visit in visits if visit.drawn is not None]
    weight, scores, learning = torch.ones_like(loss), [], loss.new_zeros(())
    for visit, law, value in drawn:
        if law.num_selected is not None:
            raise ValueError(
                f'layer {visit.name!r} gives every datapoint {law.num_selected} experts, but objective="router" wants '
                'num_selected=None; use objective="mixture" with combine=None, or "balanced" with combine="gates"'
            )
        _check_shape(loss, value.shape, visit.name, "datapoint, (*batch, n)")
        weight = weight * law.importance_weights(value).to(loss.dtype)
    cost = torch.where(weight > 0, loss, torch.zeros_like(loss)).detach()
    for visit, law, value in drawn:
        baseline, baseline_loss = _baseline(visit, cost, weight, law)
        scores.append((law.router_log_prob(value), baseline))
        learning = learning + baseline_loss
    return _learning_along(router_surrogate(loss, weight, scores), learning)


def balanced(loss: Tensor, visits: list[Visit]) -> Tensor:
    """:returns: the surrogate of the balanced objective, (*batch), for losses (*batch)."""
    surrogate, learning, cost = loss, loss.new_zeros(()), loss.detach()
    for visit in visits:
        if visit.drawn is None:
            continue
        law, value = visit.drawn
        _check_shape(loss, law.batch_shape, visit.name, "batch element, (*batch)")
        baseline, baseline_loss = _baseline(visit, cost, torch.ones_like(cost), law)
        surrogate = surrogate + balanced_surrogate(cost, law.score_function(value), baseline) - cost
        learning = learning + baseline_loss
    return _learning_along(surrogate, learning)


def mixture(loss: Tensor, visits: list[Visit]) -> Tensor:
    """:returns: the surrogate of minus the mixture bound, (*batch, n), for losses (*batch, m, n)."""
    drawn = [visit for visit in visits if visit.drawn is not None]
    last = drawn[-1] if drawn else visits[-1]
    if last.drawn is None or last.drawn[0].num_selected is None or last.combined:
        raise ValueError(
            'objective="mixture" wants the last layer that draws to have num_selected >= 2 and combine=None, but '
            f"{last.name!r} is another"
        )
    law, value = last.drawn
    if law.num_selected == 1 < law.num_experts and torch.is_grad_enabled():
        raise NotImplementedError(
            f"layer {last.name!r} has num_selected=1 of {law.num_experts} experts: the bound's gradient would teach "
            'the router nothing of the loss; use num_selected >= 2, or num_selected=None with objective="router" '
            "(without gradients the value is given)"
        )
    if last.baseline is not None:
        raise ValueError(f'layer {last.name!r}: objective="mixture" has no score function, so give no baseline')
    _check_shape(loss, value.shape, last.name, "selected expert and datapoint, (*batch, m, n)")
    log_weights = law.log_importance_weights(value).to(loss.dtype)
    kappa = last.recorded.keep_probability
    if kappa is not None:
        kappa = kappa.to(loss)
    cost = -mixture_bound(log_weights, law.router_log_prob(value).to(loss.dtype), -loss, kappa)
    return router(cost, drawn[:-1])


def _baseline(visit: Visit, cost: Tensor, weight: Tensor, law: AssignmentDistribution) -> tuple[Tensor, Tensor]:
    """:returns: the baseline without gradient, and the loss that trains it, a scalar."""
    baseline = visit.baseline
    if baseline is None:
        return cost.new_zeros(()), cost.new_zeros(())
    where = f"layer {visit.name!r}"
    if not isinstance(baseline, Baseline):
        raise ValueError(f"{where}: a dict of options is Pyro's; outside give a Baseline, such as DecayingAverage()")
    if baseline.needs_particles:
        raise ValueError(f"{where}: a {type(baseline).__name__} baseline compares particles, and here is one")
    shape = law.batch_shape + law.event_shape[-1:]
    present = torch.ones(shape, dtype=torch.bool, device=cost.device) if law.mask is None else law.mask
    step = (cost.unsqueeze(0), weight.unsqueeze(0), present.unsqueeze(0))
    try:
        value, loss = baseline.value(*step)
        value = value.detach().expand(step[0].shape).squeeze(0)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{where}: {error}") from error
    if visit.learn is not None and type(baseline).update is not Baseline.update:
        visit.learn(baseline, step)
    return value, loss


def _learning_along(surrogate: Tensor, learning: Tensor) -> Tensor:
    """The loss of the baselines adds a gradient, in equal parts to all entries, and no value."""
    share = learning / max(1, surrogate.numel())
    return surrogate + (share - share.detach())


def _check_shape(loss: Tensor, shape: torch.Size, name: str, what: str) -> None:
    if loss.shape != shape:
        raise ValueError(
            f"loss must have one entry for each {what} = {tuple(shape)} as layer {name!r} has them, got "
            f"{tuple(loss.shape)}"
        )
