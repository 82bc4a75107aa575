"""What every router owes, whatever it does."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from prob_moe.distributions.support import expert_counts
from prob_moe.experts import BatchedExperts
from prob_moe.rules import (
    SMEAR,
    BASELayer,
    DenseMixer,
    DenseMixture,
    ExpertChoice,
    GumbelSoftmax,
    HashRouting,
    LossFreeBias,
    Routing,
    RoutingRule,
    SampledGate,
    SigmaMoE,
    SinkhornBASE,
    SoftMoE,
    SparseMixer,
    SparseMixerV2,
    SparseRouting,
    SparsityConstrainedTransport,
    StraightThroughRouting,
    Switch,
)

K, D = 3, 4


@dataclass(frozen=True)
class Case:
    """
    :ivar make: builds the router for K experts, from ``capacity`` and ``capacity_factor`` where it has them.
    :ivar limited: whether it has them.
    :ivar columns: last dimension of its logits.
    """

    make: Callable[..., RoutingRule]
    limited: bool = True
    columns: int = K


RULES = {
    "switch": Case(Switch),
    "sampled gate": Case(SampledGate),
    "SparseMixer": Case(lambda **capacity: SparseMixer(epsilon=1.0, **capacity)),
    "SparseMixer v2": Case(lambda **capacity: SparseMixerV2(epsilon=1.0, **capacity)),
    "Gumbel-softmax": Case(GumbelSoftmax),
    "loss-free bias": Case(lambda **capacity: LossFreeBias(K, num_selected=2, **capacity)),
    "hash": Case(HashRouting),
    "dense mixture": Case(DenseMixture, limited=False),
    "DenseMixer": Case(lambda **capacity: DenseMixer(num_selected=2, **capacity)),
    "BASE": Case(BASELayer, limited=False),  # in training only
    "S-BASE": Case(SinkhornBASE),
    "expert choice": Case(ExpertChoice),
    "SMEAR": Case(SMEAR, limited=False),
    "SMEAR, shared": Case(lambda: SMEAR(shared=True), limited=False),
    "σ-MoE": Case(lambda **capacity: SigmaMoE(expert_dropout=0.2, **capacity)),
    "sparse transport": Case(lambda **capacity: SparsityConstrainedTransport(num_selected=K, **capacity)),
    "Soft MoE": Case(lambda: SoftMoE(slots_per_expert=2), limited=False, columns=2 * K),
}

every_router = pytest.mark.parametrize("case", RULES.values(), ids=RULES.keys())
every_limited_router = pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in RULES.items() if case.limited]
)


def logits_of(case: Case, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2 * torch.randn(*shape, case.columns, dtype=dtype)


def experts_of(dtype: torch.dtype = torch.float64, **options: Any) -> BatchedExperts:
    return BatchedExperts(K, D, 5, D, activation=torch.tanh, dtype=dtype, **options)


def route(router: RoutingRule, logits: Tensor, mask: Tensor | None = None) -> Routing:
    if isinstance(router, HashRouting):
        # An identity that goes with the datapoint.
        identity = (1e3 * logits.detach()[..., 0].nan_to_num()).long()
        return router(logits, mask=mask, identity=identity)
    return router(logits, mask=mask)


def sparse_part(routing: Routing) -> SparseRouting | None:
    if isinstance(routing, StraightThroughRouting):
        return routing.sparse
    return routing if isinstance(routing, SparseRouting) else None


@every_router
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("batch", "models"), [((), ()), ((2,), ()), ((2,), (4,))])
def test_shapes_dtypes_and_gradients(case, batch, models, dtype):
    router, experts = case.make(), experts_of(dtype, batch_shape=models)
    if isinstance(router, LossFreeBias):
        router = LossFreeBias(K, batch_shape=models)
    batch = (*batch, *models)
    logits, x = logits_of(case, *batch, 7, dtype=dtype).requires_grad_(), torch.randn(*batch, 7, D, dtype=dtype)
    routing = route(router, logits)
    output = routing.output(experts, x)
    assert output.shape == (*batch, 7, D)
    assert routing.loss.shape == batch
    assert output.dtype == routing.loss.dtype == dtype
    loss = output.float().square().sum() + routing.loss.float().sum()
    for gradient in torch.autograd.grad(loss, [logits, *experts.parameters()], allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())


@every_router
@pytest.mark.parametrize(("n", "masked"), [(0, False), (1, False), (2, False), (5, True)])
def test_few_datapoints(case, n, masked):
    """None, one, fewer than experts, and padding alone."""
    experts = experts_of()
    logits, x = logits_of(case, n).requires_grad_(), torch.randn(n, D, dtype=torch.float64)
    routing = route(case.make(), logits, torch.zeros(n, dtype=torch.bool) if masked else None)
    output = routing.output(experts, x)
    assert output.shape == (n, D)
    assert not masked or bool((output == 0).all())
    loss = output.sum() + routing.loss
    assert bool(loss.isfinite())
    for gradient in torch.autograd.grad(loss, [logits, *experts.parameters()], allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())


@every_router
def test_leading_dimensions_are_batches_of_their_own(case):
    capacity = dict(capacity=2) if case.limited else {}
    experts, router = experts_of(), case.make(**capacity).eval()
    logits, x = logits_of(case, 3, 2, 7), torch.randn(3, 2, 7, D, dtype=torch.float64)
    together = route(router, logits)
    outputs = together.output(experts, x)
    for i, j in torch.ones(3, 2).nonzero().tolist():
        alone = route(router, logits[i, j])
        torch.testing.assert_close(outputs[i, j], alone.output(experts, x[i, j]))
        torch.testing.assert_close(together.loss[i, j], alone.loss)


@every_router
@pytest.mark.parametrize("limit", [{"capacity": 3}, {"capacity_factor": 1.0}])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("filling", [torch.nan, torch.inf, -torch.inf])
def test_padding_takes_no_part(case, limit, residual, filling):
    """
    Padding before, between and behind leaves outputs, losses and gradients as they are, alone or beside others and
    whatever stands in it; a capacity factor does not count it.
    """
    experts, router = experts_of(residual=residual), case.make(**limit if case.limited else {}).eval()
    mask = torch.tensor([False, True, False, False, True, True, True, True, False, True, True, True, False])
    n = int(mask.sum())
    logits, x = logits_of(case, n), torch.randn(n, D, dtype=torch.float64)

    def results(logits, x, mask=None):
        logits, x = logits.clone().requires_grad_(), x.clone().requires_grad_()
        routing = route(router, logits, mask)
        output = routing.output(experts, x)
        loss = output.square().sum() + routing.loss
        gradients = torch.autograd.grad(loss, [logits, x, *experts.parameters()], allow_unused=True)
        return output, routing.loss, *gradients

    padded_logits = torch.full((len(mask), case.columns), filling, dtype=torch.float64)
    padded_x = torch.full((len(mask), D), filling, dtype=torch.float64)
    padded_logits[mask], padded_x[mask] = logits, x
    output, loss, for_logits, for_x, *for_parameters = results(logits, x)
    output_p, loss_p, for_logits_p, for_x_p, *for_parameters_p = results(padded_logits, padded_x, mask)
    torch.testing.assert_close(output_p[mask], output)
    torch.testing.assert_close(loss_p, loss)
    assert bool((output_p[~mask] == 0).all())
    for ours, expected in ((for_logits_p, for_logits), (for_x_p, for_x)):
        assert (ours is None) == (expected is None)
        if ours is not None:
            torch.testing.assert_close(ours[mask], expected)
            assert bool((ours[~mask] == 0).all())
    torch.testing.assert_close(for_parameters_p, for_parameters)


@every_router
def test_whatever_stands_in_padding_changes_nothing_in_training(case):
    """To the last bit, with the draws of training and several batch elements, one of them all padding."""
    router, experts = case.make(), experts_of(residual=True)
    mask = torch.tensor([[True, False, True, True, True, False], [True] * 6, [False] * 6])
    logits, x = logits_of(case, 3, 6), torch.randn(3, 6, D, dtype=torch.float64)

    def results(filling):
        torch.manual_seed(2)
        inputs = [t.masked_fill(~mask.unsqueeze(-1), filling).requires_grad_() for t in (logits, x)]
        routing = route(copy.deepcopy(router), inputs[0], mask)
        output = routing.output(experts, inputs[1])
        loss = output.square().sum() + routing.loss.sum()
        gradients = torch.autograd.grad(loss, [*inputs, *experts.parameters()], allow_unused=True)
        return output, routing.loss, *(g for g in gradients if g is not None)

    expected = results(0.0)
    assert all(bool(value.isfinite().all()) for value in expected)
    for filling in (torch.nan, torch.inf, -torch.inf, 1e300):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results(filling), expected, strict=True))


@every_limited_router
@pytest.mark.parametrize("training", [True, False])
def test_capacity_holds(case, training):
    router = case.make(capacity_factor=1.0).train(training)
    logits = logits_of(case, 50, 11) + torch.tensor([2.0, 0.0, 0.0])
    mask = torch.rand(50, 11) < 0.8
    routing = route(router, logits, mask)
    # ceil(present / 3), and ceil(11 / 3) with padding
    capacity, slots = router.capacity_of(logits, mask)
    assert capacity.tolist() == [max(1, -(-int(present) // 3)) for present in mask.sum(-1)]
    assert slots == 4
    if (sparse := sparse_part(routing)) is not None:
        assert sparse.slots == 4
        assignment = sparse.assignment.flatten(-2)
        loads = expert_counts(assignment.clamp(min=0), assignment >= 0, K)
        assert bool((loads.amax(-1) <= capacity).all())
        assert bool((loads.amax(-1) == capacity).any())
        assert bool((sparse.assignment.mT[~mask] == -1).all())
    # The expert layer itself refuses loads above capacity.
    routing.output(experts_of(), torch.randn(50, 11, D, dtype=torch.float64))


@every_router
def test_a_seed_fixes_training_and_serving_needs_none(case):
    experts, logits, x = experts_of(), logits_of(case, 40), torch.randn(40, D, dtype=torch.float64)

    def output(router, seed):
        torch.manual_seed(seed)
        return route(router, logits).output(experts, x)

    assert torch.equal(output(case.make(), 1), output(case.make(), 1))
    router = case.make().eval()
    assert torch.equal(output(router, 1), output(router, 2))


@every_router
def test_copies_and_instances(case):
    """A copy goes on as the original would; what one instance has seen, another does not know."""
    experts, logits, x = experts_of(), logits_of(case, 40), torch.randn(40, D, dtype=torch.float64)

    def output(router):
        torch.manual_seed(3)
        return route(router, logits).output(experts, x)

    router = case.make()
    fresh = output(case.make())
    for _ in range(5):
        route(router, logits + 5 * torch.eye(case.columns)[0])
    loaded = case.make()
    loaded.load_state_dict(router.state_dict())
    copies = [copy.deepcopy(router), pickle.loads(pickle.dumps(router)), loaded]
    state = copy.deepcopy(router.state_dict())
    expected = output(router)
    for other in copies:
        assert torch.equal(output(other), expected)
        assert repr(other) == repr(router)
        assert all(torch.equal(other.state_dict()[name], router.state_dict()[name]) for name in state)
    assert torch.equal(output(case.make()), fresh)


BAD_ARGUMENTS = [
    (dict(logits=torch.zeros(6, 3, dtype=torch.long)), r"logits must be .* floating-point .*int64"),
    (dict(logits=torch.zeros(3)), r"logits must have shape \(\*batch, n, k\)"),
    (dict(logits=torch.full((6, 3), torch.nan)), "contain NaN"),
    (dict(logits=torch.full((6, 3), torch.inf)), r"contain \+inf"),
    (dict(logits=torch.full((6, 3), -torch.inf)), "forbid every expert"),
    (dict(logits=torch.zeros(6, 3), mask=torch.ones(6)), "mask must be a bool tensor"),
    (dict(logits=torch.zeros(6, 3), mask=torch.ones(5, dtype=torch.bool)), r"mask of shape \(5,\)"),
]


@every_router
@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments(case, arguments, message):
    with pytest.raises(ValueError, match=message):
        route(case.make(), **arguments)


@every_limited_router
def test_bad_capacities(case):
    with pytest.raises(ValueError, match="not both"):
        case.make(capacity=2, capacity_factor=1.0)
    for capacity in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="capacity must be a positive int"):
            case.make(capacity=capacity)
    with pytest.raises(ValueError, match="capacity_factor must be positive"):
        case.make(capacity_factor=0.0)


@every_router
def test_objective_is_stated(case):
    assert case.make().objective
