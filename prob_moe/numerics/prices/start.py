"""Prices at which the density of a given assignment is worth looking for, however sharp the logits.

With sharp logits and an assignment far from ties, every softmax of the density is saturated on a whole polytope of
prices; the determinant decides, and sits where a spanning tree of exchanges is tight, far from the middle of the
polytope. No gradient leads there, but simulated noise does: noise under which given prices v support the assignment
is easy to draw, and its shortest exchange paths are prices with a tight tree.
"""

import numpy as np
import torch
from torch import Tensor

from prob_moe.numerics.prices.problem import PriceProblem

NUM_DRAWS = 16
COOLING = 4.0  # factor between two temperatures
NEWTON_STEPS = 10  # the most at one temperature
STEP_SIZES = (1.0, 0.5, 0.2, 0.05)
RIDGE = 1e-4  # curvature added where every softmax is saturated


def supporting_log_prob(problem: PriceProblem, prices: Tensor) -> Tensor:
    """Σ_i log softmax(φ_i − v)_{z_i}, the log-probability that the prices v support the assignment, (\\*, batch).

    Supported is optimal: no log P is smaller than this, at whatever feasible prices.
    """
    log_probs = torch.log_softmax(problem.logits - prices.unsqueeze(-2), -1)
    index = problem.assignment.clamp(min=0).unsqueeze(-1).expand(*log_probs.shape[:-1], 1)
    return torch.where(problem.assignment >= 0, log_probs.gather(-1, index).squeeze(-1), 0.0).sum(-1)


def central_prices(problem: PriceProblem) -> Tensor:
    """Prices that support the assignment with nearly the largest probability, (batch, k).

    Newton's method on a concave function, at logits divided by a temperature that falls to 1; a logarithmic barrier
    keeps bounded prices positive.
    """
    present = (problem.assignment >= 0).unsqueeze(-1)
    index = problem.assignment.clamp(min=0).unsqueeze(-1)
    one_hot = torch.zeros_like(problem.logits).scatter_(-1, index, 1.0) * present
    gaps = problem.logits.gather(-1, index) - problem.logits
    spans = torch.where(gaps.isfinite(), gaps.abs(), 0.0).flatten(-2).amax(-1)
    temperature = (spans / COOLING).clamp(min=1.0).unsqueeze(-1)
    free = problem.free.to(gaps)
    prices = problem.bounded * temperature
    sizes = torch.tensor(STEP_SIZES, dtype=gaps.dtype, device=gaps.device)[:, None, None]
    while True:
        cold = PriceProblem(problem.logits / temperature.unsqueeze(-1), *problem[1:])
        scaled = prices / temperature

        def value(at: Tensor, cold: PriceProblem = cold) -> Tensor:
            barrier = torch.where(problem.bounded, at, 1.0).log().nan_to_num(nan=-torch.inf).sum(-1)
            return supporting_log_prob(cold, at) + barrier

        current = value(scaled)
        for _ in range(NEWTON_STEPS):
            probs = torch.softmax(cold.logits - scaled.unsqueeze(-2), -1) * present
            inverse = torch.where(problem.bounded, 1 / torch.where(problem.bounded, scaled, 1.0), 0.0)
            gradient = (probs.sum(-2) - one_hot.sum(-2) + inverse) * free
            curvature = torch.diag_embed(probs.sum(-2) + inverse.square()) - probs.mT @ probs
            curvature = curvature * free.unsqueeze(-1) * free.unsqueeze(-2) + torch.diag_embed(1 - free + RIDGE)
            step = torch.linalg.solve(curvature, gradient)
            decrement = (step * gradient).sum(-1)
            if bool((decrement < 1e-2).all()):
                break
            # No bounded price loses more than nine tenths of itself.
            shrink = torch.where(problem.bounded, -step * inverse / 0.9, 0.0).amax(-1, keepdim=True).clamp(min=1.0)
            trials = scaled + sizes * (step / shrink)
            best, which = value(trials).nan_to_num(nan=-torch.inf).max(0)
            better = (best > current).unsqueeze(-1)
            if not bool(better.any()):
                break
            chosen = trials.gather(0, which[None, :, None].expand(1, *scaled.shape)).squeeze(0)
            scaled = torch.where(better, chosen, scaled)
            current = torch.maximum(best, current)
        prices = scaled * temperature
        if bool((temperature <= 1.0).all()):
            return prices
        temperature = (temperature / COOLING).clamp(min=1.0)


def simulated_prices(problem: PriceProblem, center: Tensor, seed: int, num_draws: int = NUM_DRAWS) -> Tensor:
    """Shadow prices of noise that is drawn given that the prices ``center`` support the assignment, (draws, batch, k).

    Row i wins at its own expert by softplus(M_i − φ_ij + v_j + log E_ij) over expert j, where M_i is Gumbel around the
    row's logsumexp and E_ij exponential. On these reduced costs, none negative, the shortest paths to the experts of
    fixed price say by how much the prices rise.
    """
    batch, n, k = problem.logits.shape
    present = problem.assignment >= 0
    home = problem.assignment.clamp(min=0).unsqueeze(-1).expand(batch, n, k)
    shifted = problem.logits - center.unsqueeze(-2)
    best = shifted.logsumexp(-1, keepdim=True)
    draws = []
    for draw in range(num_draws):
        # The same noise for every problem of the batch, and for the first rows of a longer one, so that a value depends
        # neither on its companions nor on their length.
        exponential = np.random.default_rng([seed, draw]).standard_exponential((n, k + 1))
        noise = torch.from_numpy(exponential).log().to(best.device)
        margin = torch.nn.functional.softplus(best - noise[:, :1] - shifted + noise[:, 1:])
        margin = margin.masked_fill(~present.unsqueeze(-1), torch.inf)
        costs = margin.new_full((batch, k, k), torch.inf).scatter_reduce(1, home, margin, "amin")
        rise = torch.where(problem.free, torch.inf, 0.0).to(margin)
        for _ in range(k):
            shorter = torch.minimum(rise, (costs + rise.unsqueeze(-2)).amin(-1))
            if torch.equal(shorter, rise):
                break
            rise = shorter
        draws.append(torch.where(problem.free, center + rise, 0.0))
    return torch.stack(draws)
