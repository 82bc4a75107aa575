"""Clauses on the probabilities: the router's own, and the joint law of the assignment."""

import torch
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution
from prob_moe.distributions.sets import entries_of
from prob_moe.distributions.support import router_choices
from prob_moe.testing.clauses.setting import ClauseFailed, ClauseSkipped, Setting, Size, expect, log_prob_of
from prob_moe.testing.finite_differences import central_difference
from prob_moe.testing.statistics import Deviation, deviation


def router(setting: Setting) -> str:
    """``router_log_prob`` is the log-softmax of the logits at the choice, dropped or not, and differentiable."""
    for size in setting.sizes:
        logits = setting.logits(size, 2).requires_grad_()
        routing = setting.make(logits, capacity=size.capacity)
        value = routing.sample(torch.Size((100,)))
        ours = routing.router_log_prob(value)
        log_p = logits.log_softmax(-1).expand(100, *logits.shape)
        choices = router_choices(value)
        if routing.num_selected is None:
            expected = log_p.gather(-1, choices.unsqueeze(-1)).squeeze(-1)
        else:
            expected = log_p.gather(-1, choices.mT).mT
        difference = float((ours - expected).detach().abs().max())
        expect(difference < 1e-9, f"at {size}, router_log_prob differs by {difference:.4g} nats from log_softmax")
        expect(ours.requires_grad, f"at {size}, router_log_prob carries no gradient to the logits")
        gradients = (torch.autograd.grad(x.square().sum(), logits, retain_graph=True)[0] for x in (ours, expected))
        difference = float(torch.stack(list(gradients)).diff(dim=0).abs().max())
        expect(difference < 1e-6, f"at {size}, the gradient of router_log_prob is off by {difference:.4g}")
    return ""


def normalised(setting: Setting) -> str:
    """The probabilities of all values sum to 1."""
    worst = 0.0
    for size in setting.enumerable_sizes:
        routing = setting.routing(size)
        log_prob_of(routing, routing.sample(torch.Size((1,))))
        total = float(log_prob_of(routing, all_values(routing, size)).exp().sum())
        expect(
            abs(total - 1) <= setting.log_prob_tolerance,
            f"at {size}, the probabilities of all values sum to {total:.8g}, farther from 1 than "
            f"{setting.log_prob_tolerance:.2g}",
        )
        worst = max(worst, abs(total - 1))
    return f"sums within {worst:.1e} of 1"


def frequencies(setting: Setting) -> str:
    """Every value is drawn as often as ``log_prob`` says."""
    worst = 0.0
    for size in setting.enumerable_sizes:
        routing = setting.routing(size)
        drawn = routing.sample(torch.Size((setting.num_samples,)))
        log_prob_of(routing, drawn[:1])
        listed = all_values(routing, size)
        values, counts = torch.cat([listed, drawn]).unique(dim=0, return_counts=True)
        expect(
            len(values) == len(listed), f"at {size}, draws show {len(values) - len(listed)} values that are not listed"
        )
        probability = routing.log_prob(values).exp()
        frequency = (counts - 1) / setting.num_samples
        # Counts of rare values are not normal: none is judged as if fewer than 25 were expected.
        variance = (probability * (1 - probability)).clamp(min=25 / setting.num_samples) / setting.num_samples
        error = variance.sqrt() + setting.log_prob_tolerance * probability / setting.max_standard_errors
        off = Deviation(frequency.double(), probability.double(), error.double(), 0.0)
        distance, index = off.worst()
        mean, spread, expected = off.numbers(index)
        expect(
            distance < setting.max_standard_errors,
            f"at {size}, {values[index].tolist()} is drawn with frequency {mean:.5f} ± {spread:.5f}, log_prob says "
            f"{expected:.5f}: {distance:.1f} standard errors off",
        )
        worst = max(worst, distance)
    return f"largest deviation {worst:.1f} standard errors"


def differentiable(setting: Setting) -> str:
    """The gradient of ``log_prob`` in the logits agrees with finite differences."""
    worst = 0.0
    for size in setting.enumerable_sizes:
        logits = setting.logits(size).requires_grad_()
        values = setting.make(logits, capacity=size.capacity).sample(torch.Size((5,)))

        def total(phi: Tensor, size: Size = size, values: Tensor = values) -> Tensor:
            return log_prob_of(setting.make(phi, capacity=size.capacity), values).sum()

        whole = total(logits)
        expect(whole.requires_grad, f"at {size}, log_prob carries no gradient to the logits")
        gradient = torch.autograd.grad(whole, logits)[0]
        for _ in range(3):
            direction = torch.randn_like(logits)
            derivative = float((gradient * direction).sum())
            slope = central_difference(total, logits.detach(), direction)
            expect(
                slope.agrees_with(derivative, relative_error=setting.log_prob_tolerance),
                f"at {size}, the gradient of log_prob gives a directional derivative of {derivative:.6g}, finite "
                f"differences give {slope.value:.6g} ± {slope.error:.1g}",
            )
            worst = max(worst, abs(derivative - slope.value))
    return f"finite differences within {worst:.1e}"


def twice_differentiable(setting: Setting) -> str:
    """
    Second derivatives of ``log_prob`` agree with finite differences of its gradient, or an error says that there are
    none: a gradient without a graph makes Hessians 0 without a word, and a Laplace approximation the prior.
    """
    worst = 0.0
    for size in setting.enumerable_sizes:
        if size.num_experts == 1:
            continue
        logits = setting.logits(size)
        values = setting.make(logits, capacity=size.capacity).sample(torch.Size((3,)))
        along, across = torch.randn_like(logits), torch.randn_like(logits)

        def slope(
            phi: Tensor, graph: bool = False, size: Size = size, values: Tensor = values, along: Tensor = along
        ) -> Tensor:
            with torch.enable_grad():
                phi = phi if phi.requires_grad else phi.clone().requires_grad_()
                whole = log_prob_of(setting.make(phi, capacity=size.capacity), values).sum()
                return (torch.autograd.grad(whole, phi, create_graph=graph)[0] * along).sum()

        finite = central_difference(slope, logits, across)
        point = logits.clone().requires_grad_()
        try:
            first = slope(point, graph=True)
            expect(
                first.requires_grad,
                f"at {size}, the gradient of log_prob carries no graph: second derivatives are 0 without a word, where "
                f"finite differences give {finite.value:.6g}",
            )
            second = torch.autograd.grad(first, point, allow_unused=True, materialize_grads=True)[0]
        except (NotImplementedError, RuntimeError) as error:
            return f"refused: {error}"
        derivative = float((second * across).sum())
        expect(
            finite.agrees_with(derivative, relative_error=setting.log_prob_tolerance),
            f"at {size}, a second derivative of log_prob is {derivative:.6g}, finite differences of the gradient give "
            f"{finite.value:.6g} ± {finite.error:.1g}",
        )
        worst = max(worst, abs(derivative - finite.value))
    return f"finite differences within {worst:.1e}"


def score(setting: Setting) -> str:
    """Over draws, the gradient of ``score_function`` times a payoff has the gradient of its expectation as its mean."""
    worst = 0.0
    for size in setting.enumerable_sizes:
        logits = setting.logits(size).requires_grad_()
        payoffs = torch.randn_like(logits)
        many = logits.detach().expand(setting.num_samples, *logits.shape).clone().requires_grad_()
        routing = setting.make(many, capacity=size.capacity)
        value = routing.sample()
        try:
            surrogate = routing.score_function(value) * _payoff(payoffs, value, routing.num_selected)
        except NotImplementedError as error:
            raise ClauseSkipped(f"no score_function: {error}") from None
        draws = torch.autograd.grad(surrogate.sum(), many)[0]
        single = setting.make(logits, capacity=size.capacity)
        values = all_values(single, size)
        expectation = (log_prob_of(single, values).exp() * _payoff(payoffs, values, routing.num_selected)).sum()
        exact = torch.autograd.grad(expectation, logits)[0]
        off = deviation(draws, exact, least_error=setting.log_prob_tolerance)
        distance, index = off.worst()
        mean, spread, expected = off.numbers(index)
        expect(
            distance < setting.max_standard_errors,
            f"at {size}, the score-function gradient of a random payoff in logit {index} is {mean:.4f} ± {spread:.4f}, "
            f"enumeration gives {expected:.4f}: {distance:.1f} standard errors off",
        )
        worst = max(worst, distance)
    return f"largest deviation {worst:.1f} standard errors"


def _payoff(payoffs: Tensor, value: Tensor, num_selected: int | None) -> Tensor:
    """The sum over processed entries of a table (n, k), for values (*, n) or (*, m, n)."""
    processed = entries_of(payoffs, router_choices(value), num_selected) * (value >= 0)
    return processed.sum(-1) if num_selected is None else processed.sum((-2, -1))


def all_values(routing: AssignmentDistribution, size: Size) -> Tensor:
    """``enumerate_support``, or where there is none, every code that ``support`` admits, long (count, *event)."""
    try:
        return routing.enumerate_support()
    except NotImplementedError:
        pass
    n, k, _ = size
    m = routing.num_selected or 1
    codes = torch.arange(-k, k, device=routing.logits.device)
    one = torch.cartesian_prod(*[codes] * m).reshape(-1, m)
    # What one datapoint can have, before all are combined: the rest would be far too many.
    one = one[(router_choices(one).diff(dim=-1) > 0).all(-1)]
    every = torch.cartesian_prod(*[torch.arange(len(one), device=codes.device)] * n).reshape(-1, n)
    everything = one[every].mT.reshape(-1, *routing.event_shape)
    admitted = everything[routing.support.check(everything)]
    if not len(admitted):
        raise ClauseFailed(f"at {size}, support admits no value")
    return admitted
