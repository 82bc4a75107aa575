"""What drawing a Gumbel-Matching sample with its conditionals costs, beside its noise and the other procedures."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching
from prob_moe.distributions.base import gumbel_noise_like

SIDES = ["ours", "its Gumbel noise alone", "CapacitySkip with weights", "DependentRounding with weights"]


@pytest.mark.parametrize(("n", "k"), [(1024, 16), (4096, 64)])
@pytest.mark.parametrize("side", SIDES)
def test_draw(benchmark: BenchmarkFixture, n: int, k: int, side: str) -> None:
    benchmark.group = f"draw {n}×{k}, float32"
    benchmark.extra_info["side"] = side
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(0))

    def matching_with_conditionals() -> None:
        matching = GumbelMatching(logits, capacity=n // k)
        matching.conditional_logits(matching.sample())

    def noise() -> None:
        benchmark.extra_info["bar"] = "ours at most 6 times this: at least 0.17"
        gumbel_noise_like(logits)

    def with_weights(distribution: type) -> None:
        routing = distribution(logits, capacity=n // k)
        routing.importance_weights(routing.sample())

    functions = [
        matching_with_conditionals,
        noise,
        lambda: with_weights(CapacitySkip),
        lambda: with_weights(DependentRounding),
    ]
    benchmark(functions[SIDES.index(side)])
