"""The assignment solver against POT, scipy on replicated columns and networkx; and its growth with n."""

import networkx as nx
import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from prob_moe.numerics import solve_assignment
from prob_moe.numerics._compiled import num_threads

# Peers must not pay for their defaults: as many iterations as it takes.
MAX_ITERATIONS = 100_000_000


def gumbel(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(*shape, dtype=torch.float64, generator=generator).clamp(min=1e-12)
    return torch.randn(*shape, dtype=torch.float64, generator=generator) - uniform.log().neg().log()


def skewed(n: int, k: int, hot: int) -> torch.Tensor:
    scores = gumbel(n, k)
    scores[:, :hot] += 300.0
    return scores


def biased(n: int, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n, k, dtype=torch.float64, generator=generator)
    return 10 * noise + 30 * torch.randn(k, dtype=torch.float64, generator=generator)


def rank_one(n: int, k: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 1, dtype=torch.float64, generator=generator) * torch.randn(
        k, dtype=torch.float64, generator=generator
    )


def clusters(n: int, k: int) -> torch.Tensor:
    return gumbel(50, k)[torch.arange(n) % 50]


# name -> (scores, capacity, bar against POT)
CASES = {
    "4096x64": (gumbel(4096, 64), 64, "POT >= 15"),
    "4096x64, float32": (gumbel(4096, 64).float(), 64, ""),
    "1024x16": (gumbel(1024, 16), 64, "POT >= 5"),
    "4096x64, one expert +300": (skewed(4096, 64, 1), 64, "POT >= 4"),
    "4096x64, four experts +300": (skewed(4096, 64, 4), 64, "POT >= 4"),
    "4096x64, scale 10, bias 30": (biased(4096, 64), 64, "POT >= 4"),
    "4096x64, rank one": (rank_one(4096, 64), 64, ""),
    "4096x64, 50 clusters": (clusters(4096, 64), 64, ""),
}


def pot_plan(scores: np.ndarray) -> np.ndarray:
    n, k = scores.shape
    return ot.emd(np.full(n, 1 / n), np.full(k, 1 / k), -scores, numItermax=MAX_ITERATIONS)


def label(benchmark, group: str, side: str, bar: str = "") -> None:
    benchmark.group = f"assignment {group}, {num_threads()} threads"
    benchmark.extra_info.update(side=side, bar=bar)


@pytest.mark.parametrize("name", CASES)
def test_ours(benchmark, name):
    scores, capacity, bar = CASES[name]
    label(benchmark, name, "ours", bar)
    benchmark(solve_assignment, scores, capacity)


@pytest.mark.parametrize("name", CASES)
def test_pot(benchmark, name):
    scores, _, _ = CASES[name]
    label(benchmark, name, "POT")
    benchmark.pedantic(pot_plan, args=(scores.double().numpy(),), rounds=5, warmup_rounds=1)


def test_scipy(benchmark):
    scores, capacity, _ = CASES["1024x16"]
    label(benchmark, "1024x16", "scipy")
    columns = np.repeat(scores.numpy(), capacity, axis=1)
    benchmark.pedantic(linear_sum_assignment, args=(columns,), kwargs={"maximize": True}, rounds=3)


def test_ours_tiny(benchmark):
    label(benchmark, "128x8", "ours")
    benchmark(solve_assignment, gumbel(128, 8), 16)


def test_networkx(benchmark):
    """Network simplex on integers, which is what networkx promises to be exact for."""
    label(benchmark, "128x8", "networkx")
    graph = nx.DiGraph()
    for i, row in enumerate((gumbel(128, 8) * 1e6).long().tolist()):
        graph.add_node(("row", i), demand=-1)
        for j, score in enumerate(row):
            graph.add_edge(("row", i), ("expert", j), weight=-score, capacity=1)
    for j in range(8):
        graph.add_node(("expert", j), demand=16)
    benchmark.pedantic(nx.network_simplex, args=(graph,), rounds=3)


def test_ours_batch(benchmark):
    label(benchmark, "256 problems of 256x8", "ours", "POT >= 20")
    benchmark(solve_assignment, gumbel(256, 256, 8), 32)


def test_pot_batch(benchmark):
    label(benchmark, "256 problems of 256x8", "POT")
    problems = gumbel(256, 256, 8).numpy()
    benchmark.pedantic(lambda: [pot_plan(scores) for scores in problems], rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("n", [4096, 16384, 65536, 262144])
def test_growth(benchmark, n):
    """Compare the times per row: all sizes stand in one case, the first as `ours`."""
    scores = gumbel(n, 64).float()
    label(benchmark, "growth with n, k=64, float32", "ours" if n == 4096 else f"{n // 4096} times the rows")
    benchmark.extra_info["bar"] = "" if n == 4096 else f"<= {1.3 * n / 4096:g}"
    benchmark(solve_assignment, scores, n // 64)
