"""What draws cost beside the noise that they are made of; and minimum-variance marginals beside textbook iterations."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching
from prob_moe.distributions.noise import gumbel_noise_like
from prob_moe.numerics import minimum_variance_marginals
from tests.benchmarks.case import A_PART, Case, Side

NOISE = "its Gumbel noise alone"


def logits_of(n: int, k: int, scale: float) -> Tensor:
    return scale * torch.randn(n, k, generator=torch.Generator().manual_seed(0))


def with_weights(law: Any) -> None:
    law.importance_weights(law.sample())


def rounding(n: int, k: int, scale: float, warm: bool, m: int | None) -> dict[str, Side]:
    logits = logits_of(n, k, scale)
    options: dict[str, Any] = {"capacity": (m or 1) * n // k, "num_selected": m}
    if warm:
        moved = logits + 0.02 * scale * torch.randn(n, k, generator=torch.Generator().manual_seed(1))
        options["initial_prices"] = DependentRounding(moved, **options).expert_prices
    return {
        "ours": lambda: with_weights(DependentRounding(logits, **options)),
        NOISE: lambda: gumbel_noise_like(logits),
    }


def skip(n: int, k: int) -> dict[str, Side]:
    logits = logits_of(n, k, 1.0)
    return {
        "ours": lambda: with_weights(CapacitySkip(logits, capacity=n // k)),
        NOISE: lambda: gumbel_noise_like(logits),
    }


def matching(n: int, k: int) -> dict[str, Side]:
    logits = logits_of(n, k, 1.0)

    def draw() -> None:
        law = GumbelMatching(logits, capacity=n // k)
        law.conditional_logits(law.sample())

    return {"ours": draw, NOISE: lambda: gumbel_noise_like(logits)}


def density(n: int, k: int, scale: float) -> dict[str, Side]:
    law = GumbelMatching(logits_of(n, k, scale).double(), capacity=n // k)
    value = law.sample()
    return {"ours": torch.no_grad()(partial(law.log_prob, value))}


def alternating(logits: Tensor, capacity: int, sweeps: int = 100, newton: int = 6) -> float:
    """Block ascent in torch: all α given β, then all β given α, each by Newton on the power mean."""
    p = logits.softmax(-1)
    alpha = torch.ones(p.shape[0], 1, dtype=p.dtype)
    beta = ((p.sum(0) / capacity).square() - 1).clamp(min=1e-12)
    for _ in range(sweeps):
        for prices, bound, dim in ((alpha, 1.0, 1), (beta, capacity, 0)):
            for _ in range(newton):
                root = (alpha + beta).rsqrt()
                mean = (p * root).sum(dim, keepdim=dim == 1) / bound
                slope = (p * root**3).sum(dim, keepdim=dim == 1) / bound
                prices.add_((mean**3 - mean) / slope).clamp_(min=1e-12)
    r = p * (alpha + beta).rsqrt()
    r = r / r.sum(1, keepdim=True).clamp(min=1)
    r = r / (r.sum(0) / capacity).clamp(min=1)
    return float((p * (p / r)).sum())


def marginals(n: int, k: int, scale: float) -> dict[str, Side]:
    logits = logits_of(n, k, scale).double()
    return {
        "ours": lambda: minimum_variance_marginals(logits, n // k, tolerance=1e-3).objective.item(),
        "torch, alternating": partial(alternating, logits, n // k),
    }


CASES = [
    *(
        Case(
            f"dependent rounding 4096×64, logits of scale {scale:g}{', warm' if warm else ''}",
            partial(rounding, 4096, 64, scale, warm, None),
            {NOISE: "<= 3.5" if warm else "<= 5"},
            A_PART,
        )
        for scale in (1.0, 4.0)
        for warm in (False, True)
    ),
    Case("dependent rounding 1024×16", partial(rounding, 1024, 16, 1.0, False, None), {NOISE: ""}, A_PART),
    Case("Gumbel-Matching and conditionals 4096×64", partial(matching, 4096, 64), {NOISE: "<= 6"}, A_PART),
    Case("skip 4096×64", partial(skip, 4096, 64), {NOISE: ""}, A_PART),
    *(
        Case(
            f"dependent rounding, {m} of 64 experts, 4096 datapoints",
            partial(rounding, 4096, 64, 1.0, False, m),
            {NOISE: "<= 5" if m <= 2 else ""},
            A_PART,
            axis=("m", m),
            curve="dependent rounding, 4096 datapoints, 64 experts",
        )
        for m in (1, 2, 4, 8)
    ),
    *(
        Case(
            f"marginals 4096×64, logits of scale {scale:g}",
            partial(marginals, 4096, 64, scale),
            {"torch, alternating": ""},
            deviation=lambda mine, theirs: abs(mine / theirs - 1),
            tolerance=2e-3,
        )
        for scale in (1.0, 8.0)
    ),
    *(
        Case(f"log P 1024×16, logits of scale {scale:g}", partial(density, 1024, 16, scale), seconds=1.0)
        for scale in (1.0, 10.0)
    ),
]
