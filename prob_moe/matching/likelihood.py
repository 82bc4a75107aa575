"""Likelihood of a Gumbel-Matching draw: P(Z) = ∫ p(Z, v) dv over the shadow prices v.

With at most one free price this is a sum or a quadrature; otherwise randomised quasi-Monte Carlo importance sampling
from a proposal fitted to the mode. Nothing here uses the global random generator: equal arguments give equal numbers.
"""

import math
from functools import partial

import torch
from torch import Tensor

from prob_moe.matching._compiled import leaves_torch
from prob_moe.matching.fixed_points import integrate
from prob_moe.matching.price_density import price_structure, reachable_logits, tree_log_density
from prob_moe.matching.price_integral import RULES, importance_sampling, quadrature
from prob_moe.matching.price_mode import PriceProblem

BATCH_ELEMENTS = 2**21  # of the largest tensor (points, batch, k) or (batch, k, k, k) of one chunk of the batch
QUADRATURE_POINTS = 2**13  # what product rules typically need


@leaves_torch
def matching_log_prob(
    logits: Tensor,
    assignment: Tensor,
    capacity: int | Tensor,
    *,
    num_points: int | None = None,
    max_points: int | None = None,
    tolerance: float = 0.04,
) -> tuple[Tensor, Tensor]:
    """Log-probability that ``assignment`` is the optimal assignment of Gumbel-perturbed logits, and its error.

    A single free price is integrated by quadrature to 1e-9 or better, two or three, unless n·k is large, to 1e-6 and
    3e-3 nats.

    In more dimensions the error is the largest of three: the standard error of log P over independent scrambles of a
    Sobol sequence, that of plain importance sampling with the same weights, and N^(κ − 1) for weights with Pareto tail
    index κ. It grows further when few points carry the weight. While it exceeds ``tolerance`` the number of points
    doubles. It is what was reached, also where it misses the tolerance: hard are many experts of capacity near 1.

    Derivatives with respect to ``logits``, first and second, in reverse and in forward mode, are those of the estimate
    with its points held fixed: the gradient is the self-normalised expectation of ∇ log p(Z, v) given Z. A third
    derivative raises NotImplementedError, and so does ``vmap``, instead of which batches serve; no gradient flows
    through the error. Computed in float64. Cost per point O(nk² + k³) in matrix products; memory does not grow with
    the number of points times n.

    :param logits: router logits φ, (\\*batch, n, k), −inf where a pair is forbidden.
    :param assignment: expert of each datapoint, long, (\\*batch, n), −1 where absent. The batches broadcast.
    :param capacity: datapoints an expert can hold, a positive int or a long tensor (\\*batch).
    :param num_points: points to begin with; by default 512 to 4096, the more the smaller the problem.
    :param max_points: points at which to stop doubling, by default 16 · num_points.
    :param tolerance: standard error in nats above which points are added.
    :return: log-probability and error, both (\\*batch,), in nats; (−inf, 0) where the assignment is not feasible.
    :raises ValueError: for wrong shapes, dtypes, capacity or numbers of points, or logits that are NaN or +inf.

    >>> logits = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    >>> log_prob, error = matching_log_prob(logits, torch.tensor([[0, 1], [1, 0]]), capacity=1)
    >>> log_prob.exp()  # e (e − 2) / (e − 1)², and the rest
    tensor([0.6613, 0.3387])
    """
    structure = price_structure(logits, assignment, capacity)
    n, k = logits.shape[-2:]
    if num_points is None:
        num_points = min(4096, max(512, 2 ** round(math.log2(2**24 / max(1, n * k)))))
    max_points = 16 * num_points if max_points is None else max_points
    for name, value in (("num_points", num_points), ("max_points", max_points)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 16:
            raise ValueError(f"{name} must be an int of at least 16, got {value!r}.")
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, in nats, got {tolerance!r}.")

    batch = structure.feasible.shape
    flat_logits = logits.expand(*batch, n, k).reshape(-1, n, k).double()
    flat_assignment = assignment.expand(*batch, n).reshape(-1, n)
    flat = type(structure)(*(field.reshape(-1, *field.shape[len(batch) :]) for field in structure))
    dimension = flat.free.sum(-1)

    log_prob = torch.full((len(flat_logits),), -torch.inf, dtype=torch.float64, device=logits.device)
    error = torch.zeros_like(log_prob)
    for d in dimension[flat.feasible].unique().tolist():
        by_rule = d in RULES and n * k <= RULES[d].max_elements
        points = QUADRATURE_POINTS if by_rule else num_points
        size = max(1, BATCH_ELEMENTS // max(n * k, points * k, k**3))
        for index in (flat.feasible & (dimension == d)).nonzero().squeeze(-1).split(size):
            z, part = flat_assignment[index], type(flat)(*(field[index] for field in flat))
            if d == 0:
                no_prices = flat_logits.new_zeros(k)
                value = tree_log_density(reachable_logits(flat_logits[index], z, part), z, no_prices, part.free)
            else:
                problem = PriceProblem.build(flat_logits.detach()[index], z, part)
                if by_rule:
                    integral = partial(quadrature, dimension=d)
                else:
                    integral = partial(
                        importance_sampling, num_points=num_points, max_points=max_points, tolerance=tolerance
                    )
                value, spread = integrate(flat_logits[index], problem, integral)
                error = error.index_copy(0, index, spread)
            log_prob = log_prob.index_copy(0, index, value)
    return log_prob.view(batch).to(logits.dtype), error.view(batch).to(logits.dtype)
