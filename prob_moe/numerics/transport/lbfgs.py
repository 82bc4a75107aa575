"""Many small smooth minimisations at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from prob_moe.numerics._compiled import leaves_torch

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]

_SUFFICIENT_DECREASE, _CURVATURE = 1e-4, 0.9


@leaves_torch
def minimize_lbfgs(
    objective: Objective,
    start: Tensor,
    *,
    max_iterations: int = 200,
    tolerance: float = 1e-8,
    history: int = 10,
    max_trials: int = 30,
) -> Tensor:
    r"""
    Minimise b functions of k variables side by side by L-BFGS, with a bisection for the weak Wolfe conditions. It makes
    progress on convex functions with kinks too (Lewis & Overton 2013, "Nonsmooth optimization via quasi-Newton
    methods").

    Every problem has its own step and stops moving by itself; all of them are evaluated until the last has stopped.

    :param objective: from points (b, k) to values (b,) and gradients (b, k).
    :param start: (b, k).
    :param max_iterations: the most steps.
    :param tolerance: a problem has converged when no entry of its gradient is larger.
    :param history: pairs of steps and gradient differences that are kept.
    :param max_trials: the most points along a direction.
    :returns: the points, (b, k).
    """
    x = start
    value, gradient = objective(x)
    pairs: list[tuple[Tensor, Tensor]] = []
    stalled = torch.zeros_like(value)
    for _ in range(max_iterations):
        # At a kink the gradient stays large, and only rounding still lowers the value.
        active = (gradient.abs().amax(-1) > tolerance) & (stalled < 3)
        if not bool(active.any()):
            break
        direction = -_inverse_hessian_product(pairs, gradient)
        uphill = (direction * gradient).sum(-1, keepdim=True) >= 0
        direction = torch.where(uphill, -gradient, direction) * active.unsqueeze(-1)
        step, new_value, new_gradient = _line_search(objective, x, value, gradient, direction, max_trials)
        if not bool((step != 0).any()):
            if not pairs:
                break
            pairs = []  # the memory misled every problem: start again from the gradient
            continue
        x = x + step
        progress = value - new_value > 1e-12 * value.abs()
        stalled = torch.where(progress, 0.0, stalled + 1)
        pairs = [*pairs[-history + 1 :], (step, new_gradient - gradient)]
        value, gradient = new_value, new_gradient
    return x


def _inverse_hessian_product(pairs: list[tuple[Tensor, Tensor]], gradient: Tensor) -> Tensor:
    """The two-loop recursion; a problem skips its pairs without curvature."""
    q = gradient
    scale = None
    used = []
    for s, y in reversed(pairs):
        curvature = (s * y).sum(-1, keepdim=True)
        useful = curvature > 1e-14 * s.norm(dim=-1, keepdim=True) * y.norm(dim=-1, keepdim=True)
        inverse = torch.where(useful, 1 / torch.where(useful, curvature, 1.0), 0.0)
        amount = inverse * (s * q).sum(-1, keepdim=True)
        q = q - amount * y
        used.append((s, y, inverse, amount))
        if scale is None:  # the newest curvature; the size of a first step where there is none
            squared = y.square().sum(-1, keepdim=True)
            scale = torch.where(useful, curvature / torch.where(useful, squared, 1.0), _first_step(gradient))
    q = q * (_first_step(gradient) if scale is None else scale)
    for s, y, inverse, amount in reversed(used):
        q = q + s * (amount - inverse * (y * q).sum(-1, keepdim=True))
    return q


def _first_step(gradient: Tensor) -> Tensor:
    return 1 / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-300)


def _line_search(
    objective: Objective, x: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, max_trials: int
) -> tuple[Tensor, Tensor, Tensor]:
    """:returns: the step (b, k), 0 where no decrease was found, and value and gradient behind it."""
    slope = (gradient * direction).sum(-1)
    low, high = torch.zeros_like(value), torch.full_like(value, torch.inf)
    length = torch.ones_like(value)
    best_length, best_value, best_gradient = low, value, gradient
    searching = slope < 0
    for _ in range(max_trials):
        trial_value, trial_gradient = objective(x + length.unsqueeze(-1) * direction)
        decreased = trial_value <= value + _SUFFICIENT_DECREASE * length * slope
        better = searching & decreased
        best_length = torch.where(better, length, best_length)
        best_value = torch.where(better, trial_value, best_value)
        best_gradient = torch.where(better.unsqueeze(-1), trial_gradient, best_gradient)
        flat = (trial_gradient * direction).sum(-1) >= _CURVATURE * slope
        searching = searching & ~(decreased & flat)
        if not bool(searching.any()):
            break
        low, high = torch.where(decreased, length, low), torch.where(decreased, high, length)
        length = torch.where(high.isinf(), 2 * length, (low + high) / 2)
    return best_length.unsqueeze(-1) * direction, best_value, best_gradient
