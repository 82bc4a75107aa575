"""Draws that depend on where they are made, on one process."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
    KeyedDraws,
    draws_at,
)
from prob_moe.distributions.keyed_draws import seed_of
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.rules import GumbelSoftmax, SigmaMoE, SparseMixer
from tests.parallel import cases

LAWS = {
    "rounding": lambda logits: DependentRounding(logits, capacity=3),
    "matching": lambda logits: GumbelMatching(logits, capacity=3),
    "skip": lambda logits: CapacitySkip(logits, capacity=2),
    "independent": IndependentRouting,
    "rounding of pairs": lambda logits: DependentRounding(logits, capacity=4, num_selected=2),
    "skip of pairs": lambda logits: CapacitySkip(logits, capacity=4, num_selected=2),
    "independent pairs": lambda logits: IndependentRouting(logits, num_selected=2),
}
RULES = {
    "Gumbel-softmax": GumbelSoftmax,
    "SparseMixer": lambda: SparseMixer(epsilon=5.0),
    "sigma": lambda: SigmaMoE(num_selected=2, expert_dropout=0.5),
}


def value(name, logits, *, step=0, micro_step=0, site="layer", seed=0, process=0):
    with KeyedDraws(seed, process=process).step(step, micro_step), draws_at(site, len(logits)):
        return LAWS[name](logits).sample() if name in LAWS else RULES[name]()(logits).chosen


@pytest.fixture
def logits():
    return torch.randn(4, 8, 3, dtype=torch.float64)


@pytest.mark.parametrize("name", [*LAWS, *RULES])
def test_the_key_says_it_all(name, logits):
    first = value(name, logits)
    torch.rand(7)
    assert torch.equal(value(name, logits), first)
    for other in ({"step": 1}, {"micro_step": 1}, {"site": "other"}, {"seed": 1}):
        assert not torch.equal(value(name, logits, **other), first)


@pytest.mark.parametrize("name", [*LAWS, *RULES])
def test_processes_draw_what_one_does(name, logits):
    parts = [value(name, part, process=process) for process, part in enumerate(logits.split(2))]
    assert torch.equal(torch.cat(parts), value(name, logits))
    same = value(name, logits[:1].expand(4, -1, -1))
    assert not torch.equal(same[0], same[1])


@pytest.mark.parametrize("name", LAWS)
def test_a_visit_is_a_particle(name, logits):
    """Particles drawn at once are those drawn one after the other."""
    draws, law = KeyedDraws(0), LAWS[name](logits)
    with draws.step(0), draws_at("layer", 4):
        together = law.sample(torch.Size([2]))
    with draws.step(0):
        with draws_at("layer", 4):
            first = law.sample()
        with draws_at("layer", 4):
            second = law.sample()
    assert torch.equal(together, torch.stack([first, second]))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", cases.ELBOS)
def test_an_elbo_has_the_same_particles_at_once_and_one_by_one(name):
    elbo, options = cases.ELBOS[name]
    one_by_one, at_once = (cases.infer(elbo, options, vectorized=vectorized) for vectorized in (False, True))
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-12, atol=1e-12)


def test_two_layers_of_one_shape_draw_apart():
    """Without the site's name in the key they would not: the routers are equal."""
    layers = nn.Sequential(*(ExpertLayer(nn.Linear(3, 4), BatchedExperts(4, 3, None, 3)) for _ in range(2)))

    def drawn():
        with torch.no_grad(), KeyedDraws(0).step(0), record_routing() as routed:
            layers(torch.zeros(2, 30, 3))
        first, second = (layer.value for layer in routed.record().layers.values())
        return torch.equal(first, second)

    for layer in layers:
        layer.assignment, layer.capacity_factor = IndependentRouting, None
        nn.init.zeros_(layer.router.weight)
        nn.init.zeros_(layer.router.bias)
    assert not drawn()


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("rule", [None, GumbelSoftmax])
def test_a_repeated_pass_draws_the_same(inside, rule):
    """Activation checkpointing repeats passes within the backward pass, when the step may be over."""
    router, experts = nn.Linear(3, 4).double(), BatchedExperts(4, 3, 5, 3, dtype=torch.float64)
    layer = ExpertLayer(router, experts, rule or DependentRounding, capacity_factor=1.0 if rule is None else None)
    x = torch.randn(2, 9, 3, dtype=torch.float64)

    def gradient(call):
        layer.zero_grad()
        with KeyedDraws(0).step(3), record_routing() as routed:
            losses = [call(x).square().sum(-1) for _ in range(2)]
            total = sum(routed.surrogate(loss).sum() if rule is None else loss.sum() for loss in losses)
            if inside:
                total.backward()
        if not inside:
            total.backward()
        return [parameter.grad.clone() for parameter in layer.parameters()]

    plain = gradient(layer)
    torch.testing.assert_close(gradient(lambda x: checkpoint(layer, x, use_reentrant=False)), plain)


def test_without_a_step_torchs_generator_draws(logits):
    torch.manual_seed(3)
    with draws_at("layer", 4):
        first = IndependentRouting(logits).sample()
    torch.manual_seed(3)
    assert torch.equal(IndependentRouting(logits).sample(), first)


def test_mistakes(logits):
    for seed in (0.5, True, "a"):
        with pytest.raises(ValueError, match="seed must be an int"):
            KeyedDraws(seed)
    with pytest.raises(ValueError, match="process=-1"):
        KeyedDraws(0, process=-1)
    with (
        KeyedDraws(0).step(0),
        draws_at("layer", 3),
        pytest.raises(ValueError, match=r"'layer' has 3 batch elements, but draws \(4,\)"),
    ):
        IndependentRouting(logits).sample()


class SampleOnly(AssignmentDistribution):
    limited = False

    def sample(self, sample_shape=torch.Size()):  # noqa: B008
        return self._sample_router(torch.Size(sample_shape))


def test_a_procedure_without_keys_says_so(logits):
    SampleOnly(logits).sample()
    with KeyedDraws(0).step(0), draws_at("layer", 4), pytest.raises(NotImplementedError, match="knows no keys"):
        SampleOnly(logits).sample()


def test_seeds_are_spread():
    seeds = [seed_of(0, 0, 0, "layer", 0, element) for element in range(1000)]
    assert len(set(seeds)) == 1000
    assert 0 <= min(seeds) < 2**57 < 2**62 < max(seeds) < 2**63
