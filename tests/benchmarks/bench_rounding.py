"""Minimum-variance marginals beside textbook alternating ascent; rounding beside draws without capacity."""

import pytest
import torch

from prob_moe.numerics import dependent_rounding, minimum_variance_marginals

SIZES = [(1024, 16), (4096, 64)]
ROUTERS = {"mild": (1.0, 1.0), "sharp": (10.0, 1.0)}


def router(n, k, scale, bias):
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(n, k, generator=generator, dtype=torch.float64)
    return logits + bias * torch.randn(k, generator=generator, dtype=torch.float64)


def alternating_marginals(logits, capacity, rounds=30, newton=6):
    """Block ascent in torch: all α given β, then all β given α, each by vectorised Newton on the power mean."""
    p = logits.softmax(-1)
    alpha = torch.ones(p.shape[0], 1, dtype=p.dtype)
    beta = ((p.sum(0) / capacity).square() - 1).clamp(min=1e-12)
    for _ in range(rounds):
        for prices, bound, dim in ((alpha, 1.0, 1), (beta, capacity, 0)):
            for _ in range(newton):
                root = (alpha + beta).rsqrt()
                mean = (p * root).sum(dim, keepdim=dim == 1) / bound
                slope = (p * root**3).sum(dim, keepdim=dim == 1) / bound
                prices.add_((mean**3 - mean) / slope).clamp_(min=1e-12)
    r = p * (alpha + beta).rsqrt()
    r = r / r.sum(1, keepdim=True).clamp(min=1)
    return r / (r.sum(0) / capacity).clamp(min=1)


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("side", ["ours", "ours, warm", "torch alternating, 30 rounds"])
def test_marginals(benchmark, n, k, kind, side):
    logits = router(n, k, *ROUTERS[kind])
    c = n // k
    later = logits + 0.02 * torch.randn(n, k, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prices = minimum_variance_marginals(logits, c).expert_prices
    run = {
        "ours": lambda: minimum_variance_marginals(later, c).marginals,
        "ours, warm": lambda: minimum_variance_marginals(later, c, initial_prices=prices).marginals,
        "torch alternating, 30 rounds": lambda: alternating_marginals(later, c),
    }[side]
    benchmark.group = f"marginals {n}x{k} {kind}"
    p, r = later.softmax(-1), run()
    excess = (p * (p / r)).nan_to_num().sum().item() / minimum_variance_marginals(later, c, tolerance=1e-11).objective
    benchmark.extra_info.update(side=side, bar=f"Σ E w² above the optimum by {excess.item() - 1:.1e}")
    benchmark(run)


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("side", ["ours", "torch.multinomial, independent rows", "uniforms alone"])
def test_rounding(benchmark, n, k, side):
    r = minimum_variance_marginals(router(n, k, *ROUTERS["mild"]), n // k).marginals
    run = {
        "ours": lambda: dependent_rounding(r, capacity=n // k),
        "torch.multinomial, independent rows": lambda: torch.multinomial(r, 1),
        "uniforms alone": lambda: torch.rand(n, k, dtype=torch.float64),
    }[side]
    benchmark.group = f"rounding {n}x{k}"
    benchmark.extra_info.update(side=side, bar="with marginals < 100 ms" if side == "ours" else "")
    benchmark(run)
