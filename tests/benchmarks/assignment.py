"""Exact assignment beside the exact solvers of POT, scipy (on replicated columns) and networkx."""

from collections.abc import Callable
from functools import partial

import networkx as nx
import numpy as np
import ot
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from prob_moe.numerics import solve_assignment
from tests.benchmarks.case import Case, Side

# Peers must not pay for their defaults: as many iterations as it takes.
MAX_ITERATIONS = 100_000_000


def gumbel(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(*shape, dtype=torch.float64, generator=generator).clamp(min=1e-12)
    return torch.randn(*shape, dtype=torch.float64, generator=generator) - uniform.log().neg().log()


def skewed(n: int, k: int, hot: int) -> Tensor:
    scores = gumbel(n, k)
    scores[:, :hot] += 300.0
    return scores


def biased(n: int, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(n, k, dtype=torch.float64, generator=generator)
    return 10 * noise + 30 * torch.randn(k, dtype=torch.float64, generator=generator)


def rank_one(n: int, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(n, 1, dtype=torch.float64, generator=generator)
    return rows * torch.randn(k, dtype=torch.float64, generator=generator)


def clusters(n: int, k: int) -> Tensor:
    return gumbel(50, k)[torch.arange(n) % 50]


def by_pot(scores: Tensor) -> float:
    """Its sum of scores: POT returns a plan."""
    n, k = scores.shape
    values = scores.double().numpy()
    plan = ot.emd(np.full(n, 1 / n), np.full(k, 1 / k), -values, numItermax=MAX_ITERATIONS)
    return float((plan * values).sum() * n)


def by_scipy(scores: Tensor, capacity: int) -> float:
    columns = np.repeat(scores.numpy(), capacity, axis=1)
    rows, chosen = linear_sum_assignment(columns, maximize=True)
    return float(columns[rows, chosen].sum())


def by_networkx(graph: nx.DiGraph) -> float:
    return -nx.network_simplex(graph)[0] / 1e6


def graph_of(scores: Tensor, capacity: int) -> nx.DiGraph:
    """On integers, which is what its network simplex promises to be exact for."""
    graph = nx.DiGraph()
    for i, row in enumerate((scores * 1e6).long().tolist()):
        graph.add_node(("row", i), demand=-1)
        for j, score in enumerate(row):
            graph.add_edge(("row", i), ("expert", j), weight=-score, capacity=1)
    for j in range(scores.shape[1]):
        graph.add_node(("expert", j), demand=capacity)
    return graph


def ours(scores: Tensor, capacity: int) -> float:
    chosen = solve_assignment(scores, capacity).assignment
    return float(scores.double().gather(-1, chosen.unsqueeze(-1)).sum())


def sides(make: Callable[[], Tensor], capacity: int, *peers: str) -> dict[str, Side]:
    scores = make()
    found: dict[str, Side] = {"ours": partial(ours, scores, capacity)}
    if "POT" in peers:
        found["POT, network simplex"] = partial(by_pot, scores)
    if "scipy" in peers:
        found["scipy, replicated columns"] = partial(by_scipy, scores, capacity)
    if "networkx" in peers:
        found["networkx, network simplex"] = partial(by_networkx, graph_of(scores, capacity))
    return found


def of_batch() -> dict[str, Side]:
    problems = gumbel(256, 256, 8)
    return {
        "ours": partial(ours, problems, 32),
        "POT, network simplex": lambda: sum(by_pot(scores) for scores in problems),
    }


def on_two_threads(problems: int, n: int, k: int) -> dict[str, Side]:
    scores = gumbel(problems, n, k)

    def on(threads: int) -> float:
        torch.set_num_threads(threads)
        return ours(scores, n // k)

    return {"ours": partial(on, 2), "one thread": partial(on, 1)}


def off(mine: float, theirs: float) -> float:
    """Relative difference of the sums of scores: optima may be several, their value is one."""
    return abs(mine - theirs) / max(abs(theirs), 1.0)


def single(what: str, make: Callable[[], Tensor], capacity: int, goal: str = "") -> Case:
    goals = {"POT, network simplex": goal}
    return Case(f"assignment {what}", partial(sides, make, capacity, "POT"), goals, deviation=off)


CASES = [
    single("4096×64", partial(gumbel, 4096, 64), 64, ">= 15"),
    single("1024×16", partial(gumbel, 1024, 16), 64, ">= 10"),
    single("4096×64, one expert +300", partial(skewed, 4096, 64, 1), 64, ">= 15"),
    single("4096×64, four experts +300", partial(skewed, 4096, 64, 4), 64, ">= 15"),
    single("4096×64, scale 10, bias 30", partial(biased, 4096, 64), 64),
    single("4096×64, rank one", partial(rank_one, 4096, 64), 64),
    single("4096×64, 50 clusters", partial(clusters, 4096, 64), 64),
    Case(
        "assignment 512×16",
        partial(sides, partial(gumbel, 512, 16), 32, "scipy"),
        {"scipy, replicated columns": ""},
        deviation=off,
    ),
    Case(
        "assignment 128×8",
        partial(sides, partial(gumbel, 128, 8), 16, "networkx"),
        {"networkx, network simplex": ""},
        deviation=off,
        tolerance=1e-4,  # it works on scores of six decimals
    ),
    Case("assignment, 256 problems of 256×8", of_batch, {"POT, network simplex": ">= 15"}, deviation=off),
    Case(
        "assignment, 64 problems of 1024×16, two threads",
        partial(on_two_threads, 64, 1024, 16),
        {"one thread": ">= 1.5"},
        deviation=off,
        threads=2,
    ),
    *(
        Case(
            f"assignment {n}×64, growth in n",
            partial(sides, partial(gumbel, n, 64), n // 64, *(["POT"] if n <= 16384 else [])),
            {"POT, network simplex": ""} if n <= 16384 else {},
            deviation=off,
            axis=("n", n),
            curve="exact assignment, 64 experts",
        )
        for n in (1024, 4096, 16384, 65536)
    ),
    *(
        Case(
            f"assignment 4096×{k}, growth in k",
            partial(sides, partial(gumbel, 4096, k), 4096 // k, "POT"),
            {"POT, network simplex": ""},
            deviation=off,
            axis=("k", k),
            curve="exact assignment, 4096 datapoints",
        )
        for k in (4, 16, 64, 256)
    ),
    Case("assignment 65536×128", partial(sides, partial(gumbel, 65536, 128), 512), seconds=3, full=True),
    Case("assignment 1000000×8", partial(sides, partial(gumbel, 1_000_000, 8), 125_000), seconds=3, full=True),
]
