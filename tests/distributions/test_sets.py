"""Several distinct experts per datapoint: the law, weights, pairs and keep probabilities against enumeration."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
    draw_of,
)
from prob_moe.distributions.draw import SetDraw
from prob_moe.distributions.support import router_choices
from prob_moe.testing.statistics import deviation
from tests.distributions.test_contract import logits_of

#: (n, k, m, capacity): slack, tight, more places than slots, everybody everywhere
CASES = [(4, 3, 2, 3), (3, 3, 2, 2), (3, 3, 2, 1), (3, 4, 3, 2), (4, 3, 1, 2), (3, 3, 3, 3), (5, 3, 2, 4)]
ROUNDED = [*CASES, (4, 4, 2, 2), (5, 4, 2, 1), (5, 4, 2, None), (3, 3, 3, None)]
CHOOSING = [IndependentRouting, CapacitySkip]


def per_expert(value: Tensor, entries: Tensor, k: int) -> Tensor:
    """Sums of entries (*, m, n) by expert, (*, n, k)."""
    return (one_hot(router_choices(value), k) * entries.unsqueeze(-1)).sum(-3)


def expect(values: Tensor, log_prob: Tensor) -> Tensor:
    """The expectation over all values, listed along the first dimension."""
    return torch.tensordot(log_prob.exp(), values, dims=1)


def outer(p: Tensor) -> Tensor:
    """p_a p_b for a != b, 0 on the diagonal, (n, k, k)."""
    return p.unsqueeze(-1) * p.unsqueeze(-2) * (1 - torch.eye(p.shape[-1], dtype=p.dtype))


def pairs_by_expert(value: Tensor, pair_weights: Tensor, k: int) -> Tensor:
    chosen = one_hot(router_choices(value), k).double()
    return torch.einsum("sabn,sanj,sbnl->snjl", pair_weights, chosen, chosen)


@pytest.mark.parametrize("procedure", CHOOSING)
@pytest.mark.parametrize(("n", "k", "m", "capacity"), CASES)
def test_law_weights_pairs_and_keep_probability_by_enumeration(
    procedure: type[AssignmentDistribution], n: int, k: int, m: int, capacity: int
) -> None:
    routing = procedure(logits_of(n, k), capacity=capacity, num_selected=m)
    value = routing.enumerate_support()
    log_prob = routing.log_prob(value)
    p = routing.logits.softmax(-1)
    torch.testing.assert_close(log_prob.exp().sum().item(), 1.0)
    weighted = per_expert(value, routing.importance_weights(value), k)
    torch.testing.assert_close(expect(weighted, log_prob), p)
    pairs = pairs_by_expert(value, routing.pair_weights(value), k)
    torch.testing.assert_close(expect(pairs, log_prob), outer(p) * (m > 1))
    kept = (value >= 0).any(-2) / routing.keep_probability(value)
    torch.testing.assert_close(expect(kept, log_prob), torch.ones(n, dtype=torch.float64))
    assert bool(routing.support.check(value).all())
    assert len(value.unique(dim=0)) == len(value)


@pytest.mark.parametrize("procedure", CHOOSING)
@pytest.mark.parametrize(("n", "k", "m", "capacity"), [(3, 3, 2, 1), (4, 3, 2, 3), (2, 4, 3, 1)])
def test_draws_follow_the_law(procedure: type[AssignmentDistribution], n: int, k: int, m: int, capacity: int) -> None:
    routing = procedure(logits_of(n, k), capacity=capacity, num_selected=m)
    num_samples = 100_000
    listed = routing.enumerate_support()
    values, counts = torch.cat([listed, routing.sample((num_samples,))]).unique(dim=0, return_counts=True)
    assert len(values) == len(listed)
    probability = routing.log_prob(values).exp()
    # Counts of rare values are not normal: none is judged as if fewer than 25 were expected.
    variance = (probability * (1 - probability)).clamp(min=25 / num_samples) / num_samples
    assert (((counts - 1) / num_samples - probability) / variance.sqrt()).abs().max() < 5


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize(
    ("n", "k", "m", "capacity"), [*CASES, (4, 4, 2, 2), (5, 4, 2, 1), (5, 4, 2, None), (3, 3, 3, None)]
)
def test_rounding_has_its_marginals_and_unbiased_weights(
    n: int, k: int, m: int, capacity: int | None, scale: float
) -> None:
    routing = DependentRounding(scale * logits_of(n, k), capacity=capacity, num_selected=m)
    num_samples = 20_000
    value = routing.sample((num_samples,))
    r, p = routing.log_marginals.exp(), routing.logits.softmax(-1)
    processed = per_expert(value, (value >= 0).double(), k)
    least = (r * (1 - r)).clamp(min=25 / num_samples).div(num_samples).sqrt()
    assert deviation(processed, r, least_error=least).worst()[0] < 5
    weighted = per_expert(value, routing.importance_weights(value), k)
    assert deviation(weighted, p, least_error=least * p / r).worst()[0] < 5
    kept = (value >= 0).any(-2) / routing.keep_probability(value)
    assert deviation(kept, torch.ones(n), least_error=5 / num_samples).worst()[0] < 5
    assert bool(routing.support.check(value).all())
    assert bool(routing.support.check(routing.mode).all())
    if capacity is None or n * m <= k * min(n, capacity):
        torch.testing.assert_close(r.sum(-1), torch.full((n,), float(m), dtype=torch.float64), rtol=0, atol=1e-6)


def test_everybody_everywhere_weighs_with_the_router() -> None:
    for procedure in (IndependentRouting, DependentRounding):
        routing = procedure(logits_of(5, 3), capacity=5, num_selected=3)
        weights = routing.importance_weights(routing.sample())
        torch.testing.assert_close(weights, routing.logits.softmax(-1).mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("procedure", [*CHOOSING, DependentRounding])
def test_saturated_float32_routers_keep_the_weight_of_their_expert(procedure: type[AssignmentDistribution]) -> None:
    logits = torch.full((6, 4), -40.0)
    logits[:, 1] = 40.0
    routing = procedure(logits, capacity=6, num_selected=2)
    value = routing.sample((200,))
    weights = routing.importance_weights(value)
    assert weights.dtype == torch.float32
    own = per_expert(value, weights, 4)[..., 1]
    # The expert that the router is sure of is always selected, and has all the weight.
    torch.testing.assert_close(own, torch.ones_like(own))
    if procedure is not DependentRounding:
        assert bool(routing.log_prob(value).isfinite().all())
        # The subtraction 1 - p_a loses the second expert: the inclusion probability p_a (2 - p_a) / ... is 0 / 0.
        p = logits.softmax(-1)
        naive = p * (1 - p) / (p.sum(-1, keepdim=True) ** 2 - p.square().sum(-1, keepdim=True)) * 2
        assert not bool(torch.isfinite(naive).all())
        pairs = routing.pair_weights(value)
        assert bool(pairs.isfinite().all())


def test_other_laws_fail_the_same_checks() -> None:
    n, k, m, num_samples = 3, 4, 2, 100_000
    routing = IndependentRouting(logits_of(n, k), num_selected=m)
    p = routing.logits.softmax(-1)
    noise = torch.empty(num_samples, n, k, dtype=torch.float64).exponential_().log_().neg_()
    plackett_luce = (routing.logits + noise).topk(m, -1).indices.sort(-1).values.mT.contiguous()
    ours = per_expert(value := routing.sample((num_samples,)), routing.importance_weights(value), k)
    assert deviation(ours, p).worst()[0] < 5
    theirs = per_expert(plackett_luce, routing.importance_weights(plackett_luce), k)
    assert deviation(theirs, p).worst()[0] > 20
    uncorrected = per_expert(value, routing.router_log_prob(value).exp(), k)
    assert deviation(uncorrected, p).worst()[0] > 20


def mixture_bound(routing: AssignmentDistribution, log_likelihood: Tensor, with_keep: bool) -> Tensor:
    """The mixture bound by enumeration, a scalar; without kappa dropped datapoints contribute nothing."""
    value = routing.enumerate_support()
    f = log_likelihood.expand(len(value), *log_likelihood.shape).gather(-1, router_choices(value).mT).mT
    total = (routing.importance_weights(value) * f.exp()).sum(-2)
    kept = (value >= 0).any(-2)
    kappa = routing.keep_probability(value) if with_keep else torch.ones_like(total)
    terms = torch.where(kept, (kappa * total.where(kept, 1.0)).log() / kappa, 0.0)
    return expect(terms.sum(-1), routing.log_prob(value))


def test_keep_probabilities_make_a_bound_and_without_them_there_is_none() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    # Data that the model finds improbable: whoever is dropped counts as a gain unless kappa says how rarely.
    f = torch.randn(3, 3, generator=generator, dtype=torch.float64) - 6.0
    exact = (logits.log_softmax(-1) + f).logsumexp(-1).sum()
    skip = CapacitySkip(logits, capacity=1, num_selected=2)
    assert mixture_bound(skip, f, with_keep=True) < exact < mixture_bound(skip, f, with_keep=False)
    independent = IndependentRouting(logits, num_selected=2)
    assert mixture_bound(independent, f, with_keep=True) < exact
    everybody = IndependentRouting(logits, num_selected=3)
    torch.testing.assert_close(mixture_bound(everybody, f, with_keep=True), exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("procedure", CHOOSING)
@pytest.mark.parametrize("m", [None, 1, 2, 3])
def test_entropy_is_that_of_the_enumeration(procedure: type[AssignmentDistribution], m: int | None) -> None:
    logits = logits_of(3, 4)
    logits[0, 2] = -torch.inf
    routing = procedure(logits.requires_grad_(), num_selected=m, capacity=1)
    log_prob = routing.log_prob(routing.enumerate_support())
    expected = -(log_prob.exp() * log_prob.clamp(min=-1e3)).sum()
    torch.testing.assert_close(routing.entropy(), expected)
    assert bool(torch.autograd.grad(routing.entropy(), logits)[0].isfinite().all())


def test_padding_and_forbidden_experts() -> None:
    mask = torch.tensor([[True, False, True, True], [True] * 4, [False] * 4])
    logits = logits_of(3, 4, 4)
    logits[0, 0, :2] = -torch.inf
    for procedure in (*CHOOSING, DependentRounding):
        routing = procedure(
            logits.masked_fill(~mask.unsqueeze(-1), torch.nan), capacity_factor=1.0, mask=mask, num_selected=2
        )
        if procedure.limited:
            assert routing.capacity.tolist() == [2, 2, 1]
        assert routing.slots == (2 if procedure.limited else 4)
        for value in (routing.sample((500,)), routing.mode.unsqueeze(0)):
            assert bool(routing.support.check(value).all())
            assert bool((value.mT[:, ~mask] == -1).all())
            assert set(router_choices(value)[:, 0, :, 0].flatten().tolist()) == {2, 3}
            weights = routing.importance_weights(value)
            assert bool(weights.isfinite().all())
            assert bool((weights.mT[:, ~mask] == 0).all())
            assert bool((routing.keep_probability(value)[:, ~mask] == 1).all())


@pytest.mark.parametrize("procedure", [*CHOOSING, DependentRounding])
def test_generators_expansion_and_replay(procedure: type[AssignmentDistribution]) -> None:
    routing = procedure(logits_of(2, 6, 4), capacity=4, num_selected=2)

    def sources() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(7 + i) for i in range(6)]

    whole = routing.draw((3,), generator=sources()).value
    alone = procedure(routing.logits[1], capacity=4, num_selected=2).draw(generator=sources()[3]).value
    assert torch.equal(whole[1, 1], alone)
    grown = routing.expand((5, 2))
    assert grown.sample().shape == (5, 2, 2, 6)
    assert grown.event_shape == (2, 6)
    # Replayed under other logits, a draw still knows with which probability it was drawn.
    other = procedure(logits_of(2, 6, 4).flip(-1), capacity=4, num_selected=2)
    value = routing.sample((5,))
    ratio = (other.router_log_prob(value) - routing.router_log_prob(value)).exp()
    torch.testing.assert_close(other.importance_weights(value), routing.importance_weights(value) * ratio)
    torch.testing.assert_close(other.keep_probability(value), routing.keep_probability(value))
    if procedure in CHOOSING:
        assert draw_of(value, SetDraw) is not None
        both = ratio.unsqueeze(-2) * ratio.unsqueeze(-3)
        torch.testing.assert_close(other.pair_weights(value), routing.pair_weights(value) * both)


def test_names_and_shapes() -> None:
    routing = CapacitySkip(torch.zeros(2, 5, 3), capacity_factor=1.0, num_selected=2)
    assert repr(routing) == "CapacitySkip(logits of shape (2, 5, 3), capacity=4, num_selected=2)"
    assert repr(routing.support) == "AssignmentConstraint(3 experts, 2 for each datapoint, capacity 4, with drops)"
    assert routing.event_dim == routing.support.event_dim == 2
    assert CapacitySkip.infer_shapes(torch.Size([2, 5, 3]), num_selected=2) == ((2,), (2, 5))


BAD_SETS = [
    (dict(num_selected=0), "num_selected must be None or an int from 1 to k = 3, .* got 0"),
    (dict(num_selected=4), "num_selected must be None or an int from 1 to k = 3, .* got 4"),
    (dict(num_selected=2.0), "num_selected must be None or an int from 1 to k = 3, .* got 2.0"),
    (dict(num_selected=True), "num_selected must be None or an int .* got True"),
]


@pytest.mark.parametrize("procedure", [*CHOOSING, DependentRounding])
@pytest.mark.parametrize(("arguments", "message"), BAD_SETS)
def test_bad_numbers_of_experts(procedure: type[AssignmentDistribution], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        procedure(torch.zeros(6, 3), capacity=6, **arguments)


@pytest.mark.parametrize("procedure", [*CHOOSING, DependentRounding])
def test_too_few_allowed_experts(procedure: type[AssignmentDistribution]) -> None:
    logits = torch.zeros(6, 3)
    logits[4, 1:] = -torch.inf
    with pytest.raises(ValueError, match=r"allow datapoint \[4\] only 1 experts, fewer than num_selected=2"):
        procedure(logits, capacity=6, num_selected=2, validate_args=True)


@pytest.mark.parametrize("procedure", [CapacitySkip, DependentRounding])
def test_all_experts_need_room_for_all(procedure: type[AssignmentDistribution]) -> None:
    mask = torch.tensor([True] * 5 + [False])
    for arguments in (dict(capacity=4), dict(capacity_factor=0.7), dict(capacity=torch.tensor(4), mask=mask)):
        with pytest.raises(ValueError, match=r"num_selected=3 selects all k = 3 experts .* capacity of at least n"):
            procedure(torch.zeros(6, 3), num_selected=3, validate_args=True, **arguments)
    procedure(torch.zeros(6, 3), capacity=torch.tensor(5), mask=mask, num_selected=3, validate_args=True)


def test_what_does_not_exist_names_what_does() -> None:
    with pytest.raises(NotImplementedError, match=r"num_selected=2; DependentRounding"):
        GumbelMatching(torch.zeros(6, 3), capacity=4, num_selected=2)
    rounding = DependentRounding(torch.zeros(6, 3), capacity=4, num_selected=2)
    with pytest.raises(NotImplementedError, match=r"no closed form .* IndependentRouting or CapacitySkip"):
        rounding.pair_weights(rounding.sample())
    with pytest.raises(NotImplementedError, match="num_selected"):
        IndependentRouting(torch.zeros(6, 3)).pair_weights(torch.zeros(6).long())
    with pytest.raises(NotImplementedError, match='use marginals="minimum_variance"'):
        DependentRounding(torch.zeros(6, 3), capacity=4, num_selected=2, marginals="router")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, 5).long(), r"\(2, 5\) must end in \(m, n\) = \(2, 6\)"),
        (torch.tensor([[1] * 6, [0] * 6]), "outside the support"),
        (torch.tensor([[~1] * 6, [0] * 6]), "outside the support"),
        (torch.tensor([[1] * 6, [1] * 6]), "outside the support"),
    ],
)
def test_bad_sets(value: Tensor, message: str) -> None:
    make = partial(CapacitySkip, torch.zeros(6, 3), capacity=6, num_selected=2, validate_args=True)
    with pytest.raises(ValueError, match=message):
        make().log_prob(value)
