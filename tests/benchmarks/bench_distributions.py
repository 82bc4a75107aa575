"""What drawing a Gumbel-Matching sample with its conditionals costs, beside its noise and the other procedures."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching
from prob_moe.distributions.noise import gumbel_noise_like

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


@pytest.mark.parametrize(("n", "k", "limit"), [(1024, 16, 1), (4096, 64, 5)])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_likelihood(benchmark: BenchmarkFixture, n: int, k: int, limit: int, scale: float) -> None:
    """One value of log_prob, without gradient."""
    logits = scale * torch.randn(n, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matching = GumbelMatching(logits, capacity=n // k)
    value = matching.sample()
    benchmark.group = f"log_prob {n}×{k}, logits of scale {scale:g}"
    benchmark.extra_info["side"] = "ours"
    error = float(matching.log_prob_error(value))
    benchmark.extra_info["bar"] = f"under {limit} s; standard error {error:.3f} nat, at most 0.05"
    with torch.no_grad():
        benchmark(matching.log_prob, value)
