"""A short walk of many walkers over the prices of an assignment, to see how wide their density is."""

import torch
from torch import Tensor

from prob_moe.numerics.prices.problem import PriceProblem, in_chunks

STRETCH = 2.0
NUM_WALKERS = 64  # at least; four for each dimension if that is more
NUM_STEPS = 80
KEPT_STEPS = 8  # of the last steps, every third one


def walk(problem: PriceProblem, start: Tensor, seed: int) -> Tensor:
    """Prices of walkers that began at ``start`` (starts, batch, k), spread about as the density is, (points, batch, k).

    Stretch moves towards or away from another walker (Goodman & Weare 2010, Ensemble samplers with affine invariance,
    Comm. App. Math. Comp. Sci. 5): they need no scale, so that a crowd gathered at one corner spreads over a plateau
    thousands of nats wide in a few dozen steps.
    """
    generator = torch.Generator().manual_seed(seed)
    free = problem.free.to(start)
    dimension = int(problem.free.sum(-1).max())
    half = max(NUM_WALKERS, 4 * dimension) // 2

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, 1, generator=generator, dtype=torch.float64).to(start.device)

    def noise() -> Tensor:
        return torch.randn(half, 1, start.shape[-1], generator=generator, dtype=torch.float64).to(start.device)

    def density(points: Tensor) -> Tensor:
        return torch.cat([problem.log_density(part) for part in in_chunks(points, problem)]).nan_to_num(nan=-torch.inf)

    first = problem.coordinates(start)
    picks = torch.arange(half, device=start.device)
    crowds = [first[(picks + shift) % len(first)] + 0.3 * noise() * free for shift in (0, half)]
    heights = [density(crowd) for crowd in crowds]
    d = problem.free.sum(-1).to(start)
    kept: list[Tensor] = []
    for step in range(NUM_STEPS):
        for moving in (0, 1):
            crowd, others = crowds[moving], crowds[1 - moving]
            partner = others[torch.randint(half, (half,), generator=generator).to(start.device)]
            stretch = ((STRETCH - 1) * uniform(half) + 1).square() / STRETCH
            trial = partner + stretch.unsqueeze(-1) * (crowd - partner)
            height = density(trial)
            log_accept = (d - 1) * stretch.log() + height - heights[moving]
            accept = uniform(half).log() < log_accept
            crowds[moving] = torch.where(accept.unsqueeze(-1), trial, crowd)
            heights[moving] = torch.where(accept, height, heights[moving])
        if (NUM_STEPS - 1 - step) % 3 == 0 and step >= NUM_STEPS - 3 * KEPT_STEPS:
            kept += crowds
    return problem.prices(torch.cat(kept))
