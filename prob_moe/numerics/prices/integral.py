"""Integrals of the density of shadow prices over its support, for flat batches in float64."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from prob_moe.numerics.prices.estimate import Nodes, PriceEstimate, Spread, effective_points
from prob_moe.numerics.prices.mode import find_mode
from prob_moe.numerics.prices.problem import PriceProblem, in_chunks
from prob_moe.numerics.prices.proposal import PriceProposal
from prob_moe.numerics.prices.walk import walk

SCRAMBLES = 8
GENERATIONS = 4  # proposals tried: fits at the mode, to a walk, then to the weighted points of the one before
MOST_WALKED = 12  # free prices up to which a walk is worth its while
GOOD_SHARE = 0.1  # effective share of the points above which a proposal is kept
STUDENT = 2.365 / 2  # 95 % quantile of Student's t with as many degrees of freedom as scrambles less one, over 2
GROWTH = 1.5  # reported error over the bias that falls when the scrambles are put together
HOPELESS_SHARE = 0.01  # effective share of the points below which, in many dimensions, more of them are a waste


class Rule(NamedTuple):
    """A product quadrature: first spacing and reach in t, error in nats and points at which to stop halving.

    ``accepted`` is the error above which random points take over; ``max_elements`` is the largest size n·k of a problem
    for which the product beats random points.
    """

    spacing: float
    reach: float
    tolerance: float
    max_points: int
    accepted: float
    max_elements: float


RULES = {
    1: Rule(1 / 4, 13.0, 1e-9, 2**14, 1e-5, math.inf),
    2: Rule(1 / 2, 5.0, 1e-6, 2**15, 1e-3, 2**16),
    3: Rule(1.0, 5.0, 3e-3, 2**17, 5e-3, 2**13),
}


def quadrature(problem: PriceProblem, dimension: int, start: Tensor) -> PriceEstimate:
    """Integral over the free prices of problems that have exactly ``dimension`` of them, by a product of
    one-dimensional rules.

    The trapezoidal rule in t for u = mode + width · sinh(t), along the axes of the whitened coordinates. For analytic
    integrands with exponential tails its error falls faster than any power of the spacing (Trefethen & Weideman 2014,
    SIAM Review 56). With the spacing halved it is about squared. The last change of log P is reported as the error
    in one dimension, its square in more, where a halving is dear; halving ends when that is below the rule's tolerance.
    """
    rule = RULES[dimension]
    center, covariance = find_mode(problem, start)
    factor = torch.linalg.cholesky(covariance)
    log_volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    columns = (~problem.free).int().argsort(dim=-1, stable=True)[:, :dimension]
    spacing, coarse = rule.spacing, None
    while True:
        count = math.ceil(rule.reach / spacing)
        t = spacing * torch.arange(-count, count + 1, dtype=center.dtype, device=center.device)
        grid = torch.cartesian_prod(*[t] * dimension).view(-1, dimension)
        offset = center.new_zeros(len(grid), *center.shape)
        offset.scatter_(-1, columns.expand(len(grid), -1, -1), grid.sinh().unsqueeze(1).expand(-1, len(center), -1))
        coordinates = center + (factor @ offset.unsqueeze(-1)).squeeze(-1)
        log_weights = torch.cat([problem.log_density(part) for part in in_chunks(coordinates, problem)])
        log_weights = log_weights + log_volume + (spacing * grid.cosh()).log().sum(-1, keepdim=True)
        log_prob = log_weights.logsumexp(0)
        if coarse is not None:
            change = (log_prob - coarse).abs()
            error = change if dimension == 1 else torch.minimum(change, change.square())
            error = error.nan_to_num(nan=torch.inf)
            if bool((error < rule.tolerance).all()) or len(grid) * 2**dimension > rule.max_points:
                break
        coarse, spacing = log_prob, spacing / 2
    everything = torch.arange(len(log_prob), device=log_prob.device)
    return PriceEstimate.by(
        "quadrature", log_prob, error, [Nodes(everything, problem.prices(coordinates), log_weights)]
    )


def importance_sampling(
    problem: PriceProblem, num_points: int, max_points: int, tolerance: float, start: Tensor, least: Tensor, seed: int
) -> PriceEstimate:
    """Randomised quasi-Monte Carlo importance sampling of each problem.

    A proposal whose weights are poor is replaced by one fitted to its weighted points (adaptive importance sampling;
    Cornuet et al. 2012), which starts afresh with new points, so that the points of an estimate never chose its
    proposal.

    :param start: prices to begin the search for the mode and the walk at, (starts, batch, k).
    :param least: a bound that log P does not fall below, (batch,); an estimate that does has missed the mass.
    :param seed: of the points.
    """
    total = len(problem.logits)
    log_prob = problem.logits.new_full((total,), -torch.inf)
    error = problem.logits.new_full((total,), torch.inf)
    nodes: list[Nodes] = []
    index = torch.arange(total, device=log_prob.device)
    proposal = PriceProposal.at_mode(problem, start)
    for generation in range(GENERATIONS):
        run = _Run(proposal, GENERATIONS * seed + generation)
        run.extend(num_points)
        effective = run.effective_points()
        weak = effective < GOOD_SHARE * num_points
        weak = weak | (run.estimate()[0] < least[index] - 0.1)
        hopeless = weak & is_high(proposal.problem) & (effective < HOPELESS_SHARE * num_points)
        weak = weak & ~hopeless
        if generation + 1 == GENERATIONS:
            weak = torch.zeros_like(weak)
        following = None
        if bool(weak.any()):
            prices, log_weights = run.prices[0], run.log_weights[0].flatten(0, 1)
            following = proposal.select(weak).refined(prices[:, weak], log_weights[:, weak])
            hard = following.problem
            if generation == 0 and int(hard.free.sum(-1).max()) <= MOST_WALKED:
                following = PriceProposal.fitted(hard, walk(hard, start[:, weak], seed))
        run, kept, hopeless = run.select(~weak), index[~weak], hopeless[~weak]
        worst = torch.zeros_like(error[kept])
        while len(kept):
            value, spread, seen = run.estimate()
            # Who stops when the error that was seen is small stops where it is seen too small: what is reported has a
            # margin over it, and is never below what the shorter runs promised.
            worst = torch.maximum(worst, spread * run.count**0.5)
            spread = worst / run.count**0.5
            log_prob[kept], error[kept] = value, spread
            unmet = ~(seen < tolerance)
            finished = (~unmet | hopeless) if 2 * run.count <= max_points else torch.ones_like(unmet)
            done = run.select(finished)
            for prices, log_weights in zip(done.prices, done.log_weights):
                nodes.append(Nodes(kept[finished], prices, log_weights.flatten(0, 1) - math.log(run.count)))
            run, kept = run.select(~finished), kept[~finished]
            worst, hopeless = worst[~finished], hopeless[~finished]
            if len(kept):
                run.extend(run.count)
        if following is None:
            break
        proposal, index = following, index[weak]
    return PriceEstimate.by("quasi-Monte Carlo", log_prob, error, nodes)


def is_high(problem: PriceProblem) -> Tensor:
    """Whether a problem has so many free prices that a proposal cannot be fitted to points that it missed, (batch,)."""
    return problem.free.sum(-1) > MOST_WALKED


class _Run:
    """Weighted points of one proposal, which can be extended: scrambles of a Sobol sequence (Owen 1995) with fixed
    seeds."""

    def __init__(self, proposal: PriceProposal, stream: int):
        self.proposal = proposal
        dimension = proposal.noise_dimension(proposal.center.shape[-1])
        seeds = range(SCRAMBLES * stream, SCRAMBLES * (stream + 1))
        self.engines = [SobolEngine(dimension, scramble=True, seed=seed) for seed in seeds]
        self.count = 0
        self.prices: list[Tensor] = []  # (points, batch, k) each
        self.log_weights: list[Tensor] = []  # (SCRAMBLES, points / SCRAMBLES, batch) each

    def extend(self, count: int) -> None:
        """Add about ``count`` points, as many for each scramble."""
        each = max(1, count // SCRAMBLES)
        uniforms = torch.cat([engine.draw(each, dtype=torch.float64) for engine in self.engines])
        uniforms = uniforms.clamp(2.0**-40, 1 - 2.0**-40).to(self.proposal.center.device)
        prices, log_proposal = self.proposal.points(uniforms)
        problem = self.proposal.problem
        log_joint = torch.cat([problem.log_joint(part) for part in in_chunks(prices, problem)])
        # A point so far out that the arithmetic overflows has no weight.
        log_weights = (log_joint - log_proposal).nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        self.prices.append(prices)
        self.log_weights.append(log_weights.view(SCRAMBLES, each, -1))
        self.count += each * SCRAMBLES

    def select(self, chosen: Tensor) -> "_Run":
        """The run restricted to some problems; both continue the same sequences, so only one of them may be
        extended."""
        part = object.__new__(_Run)
        part.proposal, part.engines, part.count = self.proposal.select(chosen), self.engines, self.count
        part.prices = [prices[:, chosen] for prices in self.prices]
        part.log_weights = [log_weights[..., chosen] for log_weights in self.log_weights]
        return part

    def effective_points(self) -> Tensor:
        """Effective sample size, (batch,)."""
        return effective_points(torch.cat(self.log_weights, 1).flatten(0, 1))

    def estimate(self) -> tuple[Tensor, Tensor, Tensor]:
        """log P, its standard error with a margin for what was not seen, and without, in nats, (batch,)."""
        log_weights = torch.cat(self.log_weights, 1)
        each = log_weights.logsumexp(1) - math.log(self.count / SCRAMBLES)
        log_prob = each.logsumexp(0) - math.log(SCRAMBLES)
        between = (each - log_prob).exp().std(0) / math.sqrt(SCRAMBLES)
        spread = Spread.of(log_weights.flatten(0, 1))
        seen = torch.maximum(between, spread.least) * spread.few
        error = torch.maximum(STUDENT * between, spread.least) * (1 + spread.tail) * spread.few
        # Where few points carry the weight, log P is biased downward, and still rises with the number of points: what
        # an eightfold number gains is of the size of what is missing.
        bias = GROWTH * (log_prob - each.mean(0))
        return log_prob, torch.hypot(error, bias).nan_to_num(nan=torch.inf), seen.nan_to_num(nan=torch.inf)
