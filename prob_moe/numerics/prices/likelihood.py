"""Likelihood of a Gumbel-Matching draw: P(Z) = ∫ p(Z, v) dv over the shadow prices v.

With few free prices this is a sum or a quadrature; otherwise randomised quasi-Monte Carlo importance sampling from a
proposal fitted to the mode, and annealed importance sampling where that fails. Nothing here uses the global random
generator: equal arguments give equal numbers.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prob_moe.numerics._compiled import leaves_torch
from prob_moe.numerics.prices.annealing import annealing
from prob_moe.numerics.prices.density import price_structure, reachable_logits, tree_log_density
from prob_moe.numerics.prices.estimate import METHODS, Nodes, PriceEstimate
from prob_moe.numerics.prices.fixed_points import integrate
from prob_moe.numerics.prices.integral import RULES, importance_sampling, is_high, quadrature
from prob_moe.numerics.prices.problem import PriceProblem
from prob_moe.numerics.prices.start import central_prices, simulated_prices, supporting_log_prob

BATCH_ELEMENTS = 2**21  # of the largest tensor (points, batch, k) or (batch, k, k, k) of one chunk of the batch
LARGE, MANY = 2**13, 16  # n·k and n / k above which the search for the mode starts at zero prices
ROUNDING = 1e-6  # by which a product rule may fall short of a lower bound
ANNEALED_ABOVE = 0.1  # nats of error, with many free prices
QUADRATURE_POINTS = 2**13  # what product rules typically need


class MatchingLikelihood(NamedTuple):
    """
    :param log_prob: nats, (\\*batch,); −inf where the assignment is not feasible.
    :param error: its standard error, nats, (\\*batch,).
    :param method: how it was found, long (\\*batch,): places in ``METHODS``.
    """

    log_prob: Tensor
    error: Tensor
    method: Tensor


@leaves_torch
def matching_log_prob(
    logits: Tensor, assignment: Tensor, capacity: int | Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """Log-probability that ``assignment`` is the optimal assignment of Gumbel-perturbed logits, and its error.

    :param options: those of :func:`matching_likelihood`, which this is without the method; shapes and errors as there.
    :returns: log-probability and standard error, both (\\*batch,), in nats.

    >>> logits = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> log_prob, error = matching_log_prob(logits, torch.tensor([[0, 1], [1, 0]]), capacity=1)
    >>> log_prob.exp()  # e (e − 2) / (e − 1)², and the rest
    tensor([0.6613, 0.3387])
    """
    found = matching_likelihood(logits, assignment, capacity, **options)
    return found.log_prob, found.error


@leaves_torch
def matching_likelihood(
    logits: Tensor,
    assignment: Tensor,
    capacity: int | Tensor,
    *,
    num_points: int | None = None,
    max_points: int | None = None,
    tolerance: float = 0.04,
    integration_seed: int = 0,
) -> MatchingLikelihood:
    """Log-probability that ``assignment`` is the optimal assignment of Gumbel-perturbed logits, its error and method.

    A single free price is integrated by quadrature to 1e-9 or better, two or three, unless n·k is large, to 1e-6 and
    3e-3 nats, where the rule converges; extremely sharp logits go the way of more dimensions.

    In more dimensions the error is the largest of three: the standard error of log P over independent scrambles of a
    Sobol sequence, that of plain importance sampling with the same weights, and N^(κ − 1) for weights with Pareto tail
    index κ. It grows further when few points carry the weight, and by what more points still gain. While it exceeds
    ``tolerance`` the number of points doubles. Where points leave more than 0.1 nat, or next to none of them carries
    the weight, as with many experts of capacity near 1, annealed importance sampling takes over: seconds at 32 experts,
    half a minute at 64. The error is what was reached, also where it misses the tolerance. About 95 of 100 values lie
    within two reported errors.

    Two bounds hold always, and limit value and error: log P ≤ 0, and log P ≥ Σ_i log softmax(φ_i − v)_{z_i} at whatever
    feasible prices v.

    Derivatives with respect to ``logits``, first and second, in reverse and in forward mode, are those of the estimate
    with its points held fixed: the gradient is the self-normalised expectation of ∇ log p(Z, v) given Z, the Hessian
    that of ∇² log p + ∇ log p ∇ log pᵀ, less the square of the gradient; over annealed particles likewise. A third
    derivative raises NotImplementedError, and so does ``vmap``, instead of which batches serve; no gradient flows
    through the error. Computed in float64. Cost per point O(nk² + k³) in matrix products; memory does not grow with
    the number of points times n.

    :param logits: router logits φ, (\\*batch, n, k), −inf where a pair is forbidden.
    :param assignment: expert of each datapoint, long, (\\*batch, n), −1 where absent. The batches broadcast.
    :param capacity: datapoints an expert can hold, a positive int or a long tensor (\\*batch).
    :param num_points: points to begin with; by default 512 to 4096, the more the smaller the problem.
    :param max_points: points at which to stop doubling, by default 16 · num_points.
    :param tolerance: standard error in nats above which points are added.
    :param integration_seed: of the points: each seed gives another estimate, the same seed the same again.
    :returns: a :class:`MatchingLikelihood`; (−inf, 0) where the assignment is not feasible.
    :raises ValueError: for wrong shapes, dtypes, capacity or numbers of points, or logits that are NaN or +inf.

    >>> found = matching_likelihood(torch.zeros(2, 4, 2), torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1]]), capacity=2)
    >>> found.log_prob.exp()  # one of six; and too many for an expert
    tensor([0.1667, 0.0000])
    >>> [METHODS[method] for method in found.method]
    ['quadrature', 'not feasible']
    """
    structure = price_structure(logits, assignment, capacity)
    n, k = logits.shape[-2:]
    for name, count in (("num_points", num_points), ("max_points", max_points)):
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 16):
            raise ValueError(f"{name} must be an int of at least 16, got {count!r}.")
    check_integration_seed(integration_seed)
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, in nats, got {tolerance!r}.")

    batch = structure.feasible.shape
    flat_logits = logits.expand(*batch, n, k).reshape(-1, n, k).double()
    flat_assignment = assignment.expand(*batch, n).reshape(-1, n)
    present = (flat_assignment >= 0).sum(-1)
    flat_logits, flat_assignment = _present_first(flat_logits, flat_assignment)
    flat = type(structure)(*(field.reshape(-1, *field.shape[len(batch) :]) for field in structure))
    dimension = flat.free.sum(-1)

    log_prob = torch.full((len(flat_logits),), -torch.inf, dtype=torch.float64, device=logits.device)
    error = torch.zeros_like(log_prob)
    method = torch.full_like(log_prob, METHODS.index("not feasible"), dtype=torch.long)
    solvable = flat.feasible.nonzero().squeeze(-1)
    kinds, kind = torch.stack([dimension, present], -1)[solvable].unique(dim=0, return_inverse=True)
    ways = [_way(d, m, k, num_points, max_points) for d, m in kinds.tolist()]
    for way in dict.fromkeys(ways):
        chosen = torch.tensor([other == way for other in ways], device=kind.device)[kind]
        members = solvable[chosen]
        rows = max(min(n, 1), int(present[members].max()))
        points = QUADRATURE_POINTS if way.by_rule else way.num_points
        size = max(1, BATCH_ELEMENTS // max(rows * k, points * k, k**3))
        for index in members.split(size):
            z, part = flat_assignment[index, :rows], type(flat)(*(field[index] for field in flat))
            own_logits = flat_logits[index, :rows]
            if way.dimension == 0:
                no_prices = flat_logits.new_zeros(k)
                value = tree_log_density(reachable_logits(own_logits, z, part), z, no_prices, part.free)
                method[index] = METHODS.index("closed form")
            else:
                problem = PriceProblem.build(own_logits.detach(), z, part)
                integral = partial(_integral, way=way, tolerance=tolerance, seed=integration_seed)
                value, spread, found = integrate(own_logits, problem, integral)
                error, method = error.index_copy(0, index, spread), method.index_copy(0, index, found)
            log_prob = log_prob.index_copy(0, index, value)
    log_prob, error = (tensor.view(batch).to(logits.dtype) for tensor in (log_prob, error))
    return MatchingLikelihood(log_prob, error, method.view(batch))


def check_integration_seed(seed: int) -> None:
    """:raises ValueError: where ``seed`` is not an int that the generators of points take."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
        raise ValueError(f"integration_seed must be an int from 0 to 2**31 - 1, got {seed!r}.")


class _Way(NamedTuple):
    """How a problem is integrated, which depends on who is present in it and not on its padding."""

    dimension: int
    by_rule: bool
    simulates: bool
    num_points: int
    max_points: int


def _way(dimension: int, present: int, k: int, num_points: int | None, max_points: int | None) -> _Way:
    elements = present * k
    by_rule = dimension in RULES and elements <= RULES[dimension].max_elements
    # So many datapoints per expert leave the prices no polytope to hide in, and simulated noise would cost more than
    # the integral.
    simulates = elements <= LARGE or present < MANY * k
    if num_points is None:
        num_points = min(4096, max(512, 2 ** round(math.log2(2**24 / max(1, elements)))))
    return _Way(dimension, by_rule, simulates, num_points, 16 * num_points if max_points is None else max_points)


def _present_first(logits: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (b, n, k) and assignments (b, n) with the datapoints that are absent at the end, and zeros there."""
    absent = assignment < 0
    if not bool(absent.any()):
        return logits, assignment
    order = absent.long().argsort(dim=-1, stable=True)
    logits = logits.masked_fill(absent.unsqueeze(-1), 0.0)
    return logits.gather(-2, order.unsqueeze(-1).expand_as(logits)), assignment.gather(-1, order)


def _integral(problem: PriceProblem, *, way: _Way, tolerance: float, seed: int) -> PriceEstimate:
    """The integral by a product rule, and by importance sampling where there is none, or it did not converge."""
    if not way.simulates:
        start = torch.zeros_like(problem.scale).unsqueeze(0)
    else:
        center = central_prices(problem)
        start = torch.cat([center.unsqueeze(0), simulated_prices(problem, center, seed)])
    least, best = torch.stack([supporting_log_prob(problem, prices) for prices in start]).max(0)
    support = start.gather(0, best[None, :, None].expand(1, *start.shape[1:]))
    if not way.by_rule:
        sampled = importance_sampling(problem, way.num_points, way.max_points, tolerance, start, least, seed)
        return _bracketed(_annealed_where_poor(problem, sampled, tolerance, start, seed), least, support)
    estimate = quadrature(problem, way.dimension, start)
    rough = (estimate.error > RULES[way.dimension].accepted) | ~(estimate.log_prob > least - ROUNDING)
    if bool(rough.any()):
        index = rough.nonzero().squeeze(-1)
        sampled = importance_sampling(
            problem.select(index), way.num_points, way.max_points, tolerance, start[:, index], least[index], seed
        )
        estimate = estimate.replaced(rough, sampled)
    return _bracketed(estimate, least, support)


def _annealed_where_poor(
    problem: PriceProblem, estimate: PriceEstimate, tolerance: float, start: Tensor, seed: int
) -> PriceEstimate:
    """The estimate, with problems that points left uncertain annealed, where that is more certain."""
    poor = is_high(problem) & ~(estimate.error < max(ANNEALED_ABOVE, tolerance))
    if not bool(poor.any()):
        return estimate
    index = poor.nonzero().squeeze(-1)
    annealed = annealing(problem.select(index), tolerance, start[:, index], seed)
    better = annealed.error < estimate.error[index]
    return estimate.replaced(poor.index_copy(0, index, better), annealed.select(better))


def _bracketed(estimate: PriceEstimate, least: Tensor, support: Tensor) -> PriceEstimate:
    """No log P is larger than 0, or smaller than the log-probability that some prices support the assignment.

    The weights move with the value, so that the gradient stays the self-normalised expectation; where every point
    missed the mass, it is the score at those prices.

    :param least: that log-probability, (batch,); :param support: those prices, (1, batch, k).
    """
    value = estimate.log_prob.maximum(least).clamp(max=0.0)
    missed = estimate.log_prob == -torch.inf
    shift = torch.where(missed, 0.0, value - estimate.log_prob)
    error = torch.where(missed, torch.inf, estimate.error.maximum(shift.abs())).minimum(-least)
    nodes = [node._replace(log_weights=node.log_weights + shift[node.members]) for node in estimate.nodes]
    if bool(missed.any()):
        index = missed.nonzero().squeeze(-1)
        nodes.append(Nodes(index, support[:, index], value[index].unsqueeze(0)))
    return PriceEstimate(value, error, estimate.method, nodes)
