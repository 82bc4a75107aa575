"""Minimum-variance marginals and dependent rounding, beside the textbook ways to compute the same things."""

import pytest
import torch

from prob_moe.matching import dependent_rounding, minimum_variance_marginals

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


def entry_by_entry(r):
    """Dependent rounding as in the paper, without streaming: walk through the whole graph of fractional entries."""
    fractional = [{j: v for j, v in enumerate(row) if 0 < v < 1} for row in r.tolist()]
    columns = [{i for i, row in enumerate(fractional) if j in row} for j in range(r.shape[1])]
    for start in range(len(fractional)):
        while len(fractional[start]) > 1:
            path, seen, node, came = [], {}, start, None
            while node not in seen:  # rows are numbers from 0, columns from −1 down
                seen[node] = len(path)
                near = [-j - 1 for j in fractional[node]] if node >= 0 else columns[-node - 1]
                following = next((x for x in near if x != came), None)
                if following is None:  # rounding left a column with one entry
                    break
                path.append((node, following) if node >= 0 else (following, node))
                came, node = node, following
            cycle = path[seen[node] :] if node in seen and following is not None else path
            edges = [(i, -j - 1) for i, j in cycle]
            gain = min(min(1 - fractional[i][j] for i, j in edges[::2]), min(fractional[i][j] for i, j in edges[1::2]))
            loss = min(min(fractional[i][j] for i, j in edges[::2]), min(1 - fractional[i][j] for i, j in edges[1::2]))
            step = gain if torch.rand(()).item() * (gain + loss) < loss else -loss
            for sign, (i, j) in zip([1, -1] * len(edges), edges):
                fractional[i][j] += sign * step
                if not 1e-12 < fractional[i][j] < 1 - 1e-12:
                    del fractional[i][j]
                    columns[j].discard(i)


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("side", ["ours", "ours, warm", "torch alternating, 30 rounds"])
def bench_marginals(benchmark, n, k, kind, side):
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
    benchmark.extra_info.update(side=side, bar=f"Σ E[w²] above the optimum by {excess.item() - 1:.1e}")
    benchmark(run)


@pytest.mark.parametrize(("n", "k"), SIZES)
@pytest.mark.parametrize("side", ["ours", "uniforms alone", "python, entry by entry"])
def bench_rounding(benchmark, n, k, side):
    if side.startswith("python") and n > 1024:
        pytest.skip("minutes")
    r = minimum_variance_marginals(router(n, k, *ROUTERS["mild"]), n // k).marginals
    run = {
        "ours": lambda: dependent_rounding(r, capacity=n // k),
        "uniforms alone": lambda: torch.rand(n, k, dtype=torch.float64),
        "python, entry by entry": lambda: entry_by_entry(r),
    }[side]
    benchmark.group = f"rounding {n}x{k}"
    benchmark.extra_info.update(side=side, bar="with marginals < 100 ms" if side == "ours" else "")
    if side.startswith("python"):
        benchmark.pedantic(run, rounds=1)
    else:
        benchmark(run)
