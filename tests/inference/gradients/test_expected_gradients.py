"""Enumerated gradients: against closed forms, against draws of the routers themselves, and where they land."""

import math

import pytest
import torch

from inference.gradients.expected_gradients import (
    METHODS,
    Problems,
    cross_entropy,
    exact_gated,
    expected_gradient,
    relative_errors,
)
from prob_moe.rules import SampledGate, SparseMixer, SparseMixerV2, Switch
from prob_moe.testing import central_difference
from prob_moe.testing.statistics import deviation

NUM_FEATURES = 4


def problems_of(loss=cross_entropy):
    return Problems.draw(loss, num_problems=5, num_experts=4, num_features=NUM_FEATURES, seed=1)


def test_exact_gradient_equals_finite_differences():
    problems = problems_of()
    ours = expected_gradient(exact_gated, problems)
    for index in torch.ones_like(problems.logits).nonzero().tolist():
        unit = torch.zeros_like(problems.logits)
        unit[tuple(index)] = 1.0
        slope = central_difference(lambda logits: exact_gated(problems, logits).sum(), problems.logits, unit)
        assert slope.agrees_with(float(ours[tuple(index)])), slope


def drawn_gradients(router, problems, num_draws):
    """Gradients of the router itself, run as it is trained, (num_draws, num_problems, k)."""
    logits = problems.logits.repeat(num_draws, 1, 1).requires_grad_()
    routing = router(logits)
    choices = routing.assignment.squeeze(-2)
    outputs = problems.outputs.expand(num_draws, *problems.outputs.shape)
    chosen = outputs.gather(-2, choices[..., None, None].expand(*choices.shape, 1, NUM_FEATURES))
    losses = problems.loss(routing.gate.squeeze(-2)[..., None, None] * chosen, problems.target)
    return torch.autograd.grad(losses.sum(), logits)[0]


@pytest.mark.parametrize(
    ("name", "router"),
    [
        ("switch", Switch()),
        ("sampled-gate", SampledGate()),
        ("sparsemixer-v1-no-window", SparseMixer(epsilon=math.inf)),
        ("sparsemixer-v2-no-window", SparseMixerV2(epsilon=math.inf)),
        ("sparsemixer-v1", SparseMixer()),
        ("sparsemixer-v2", SparseMixerV2()),
    ],
)
def test_enumeration_equals_the_mean_over_draws(name, router):
    problems = problems_of()
    expected = expected_gradient(METHODS[name], problems)
    assert deviation(drawn_gradients(router, problems, 20_000), expected).worst()[0] < 5


def test_a_wrong_expectation_is_found_out():
    problems = problems_of()
    drawn = drawn_gradients(SparseMixerV2(epsilon=math.inf), problems, 20_000)
    assert deviation(drawn, expected_gradient(METHODS["sparsemixer-v1-no-window"], problems)).worst()[0] > 20
    assert deviation(drawn, expected_gradient(METHODS["sampled-gate"], problems)).worst()[0] > 5


# Medians of 1000 problems vary by about 0.005 from seed to seed; these are wider by several times that.
RANGES = {
    "sparsemixer-v1-no-window": (0.22, 0.38),
    "sparsemixer-v2-no-window": (0.32, 0.45),
    "sampled-gate": (0.33, 0.47),
    "switch": (0.26, 1.3),
}


def test_relative_errors_lie_where_faithful_implementations_do():
    table = relative_errors(num_problems=1000)
    assert (table["lower"] <= table["median"]).all()
    assert (table["median"] <= table["upper"]).all()
    medians = table[table["loss"] == "squared error"].groupby("method")["median"]
    for method, (low, high) in RANGES.items():
        assert low <= medians.min()[method] <= medians.max()[method] <= high


def test_a_window_that_holds_one_expert_alone_gives_no_gradient():
    problems = Problems.draw()
    alone = (SparseMixer().window(problems.logits) > -math.inf).sum(-1) == 1
    assert float(alone.double().mean()) > 0.5
    for version in ("v1", "v2"):
        gradient = expected_gradient(METHODS[f"sparsemixer-{version}"], problems)
        assert float(gradient[alone].abs().max()) < 1e-12
        assert bool((gradient[~alone].abs().amax(-1) > 1e-6).all())
