"""Hash routing: the map against arbitrary-precision arithmetic, its uniformity, and a loop."""

import pytest
import torch

from prob_moe.rules import HashRouting
from prob_moe.testing.statistics import deviation
from tests.rules.loops import K, make_experts, mixture_loop


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 10**30])
@pytest.mark.parametrize("num_experts", [1, 3, 8])
def test_map_is_splitmix64(seed, num_experts):
    identities = [0, 1, 2, 50_000, -1, -7, 2**62, 2**63 - 1, -(2**63)]
    ours = HashRouting(seed=seed).choose(torch.tensor(identities), num_experts)
    for identity, choice in zip(identities, ours.tolist()):
        word = splitmix64((identity + splitmix64(seed % 2**64)) % 2**64)
        signed = word - 2**64 if word >= 2**63 else word
        assert choice == signed % num_experts


def test_map_spreads_consecutive_identities_and_seeds_are_unlike():
    identities = torch.arange(100_000)
    one, two = (HashRouting(seed=seed).choose(identities, 8) for seed in (0, 1))
    uniform = torch.full((8,), 1 / 8)
    assert deviation(torch.nn.functional.one_hot(one, 8).double(), uniform).worst()[0] < 5
    pairs = torch.nn.functional.one_hot(8 * one + two, 64).double()
    assert deviation(pairs, torch.full((64,), 1 / 64)).worst()[0] < 5
    neighbours = torch.nn.functional.one_hot(8 * one[::2] + one[1::2], 64).double()
    assert deviation(neighbours, torch.full((64,), 1 / 64)).worst()[0] < 5


@pytest.mark.parametrize("models", [(), (3,)])
def test_equals_a_loop(models):
    router, experts = HashRouting(seed=5, capacity=3), make_experts(models)
    batch = (2, *models)
    logits, x = torch.randn(*batch, 11, K, dtype=torch.float64), torch.randn(*batch, 11, 4, dtype=torch.float64)
    identity = torch.randint(20, (*batch, 11))
    mask = torch.rand(*batch, 11) < 0.8
    output = router(logits, mask=mask, identity=identity).output(experts, x)
    for index in torch.ones(batch).nonzero().tolist():
        index = tuple(index)
        taken, weights = [0] * K, torch.zeros(11, K, dtype=torch.float64)
        for i in range(11):
            e = int(router.choose(identity[index][i], K))
            if mask[index][i]:
                weights[i, e] = float(taken[e] < 3)
                taken[e] += 1
        torch.testing.assert_close(output[index], mixture_loop(experts, x[index], weights, model=index[1:]))


def test_values_of_the_logits_play_no_part():
    identity = torch.randint(1000, (9,), dtype=torch.int32)
    router = HashRouting()
    logits = torch.randn(4, 9, K, requires_grad=True)
    routing = router(logits, identity=identity)
    assert torch.equal(routing.assignment, router.choose(identity, K).expand(4, 1, 9))
    assert not routing.gate.requires_grad
    assert torch.equal(routing.loss, torch.zeros(4))


def test_bad_arguments():
    logits = torch.zeros(5, 3)
    with pytest.raises(ValueError, match="seed must be an int"):
        HashRouting(seed=0.5)
    with pytest.raises(ValueError, match=r"identity must be an integer tensor \(\*batch, n\) = \(5,\), got None"):
        HashRouting()(logits)
    with pytest.raises(ValueError, match=r"identity must be an integer tensor.*got torch.float32"):
        HashRouting()(logits, identity=torch.zeros(5))
    with pytest.raises(ValueError, match=r"identity of shape \(4,\) does not broadcast"):
        HashRouting()(logits, identity=torch.arange(4))
