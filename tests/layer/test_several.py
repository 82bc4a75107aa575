"""Layers that give every datapoint several experts: gradients by enumeration, replay, serving, what is refused."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
    mixture_bound,
)
from prob_moe.estimators import DecayingAverage
from prob_moe.experts import BatchedExperts
from prob_moe.layer import ExpertLayer, record_routing
from prob_moe.rules import Switch
from prob_moe.testing import exact_mixture_bound
from tests.estimators.replicas import standard_errors_off
from tests.layer.test_gradients import Table, inputs, losses_of, problem, together

F64 = torch.float64
K, REPLICAS = 3, 6000
SETTINGS = [
    (IndependentRouting, 2, None),
    (IndependentRouting, 3, None),
    (CapacitySkip, 2, 2),
    (CapacitySkip, 2, 1),
    (DependentRounding, 2, 3),
]


def layer_of(logits: Tensor, assignment, m, capacity, combine=None, slope=0.0) -> ExpertLayer:
    """Logits of its own for every replica, and linear experts on numbers."""
    experts = BatchedExperts(K, 1, None, 1, dtype=F64)
    with torch.no_grad():
        experts.output.weight.copy_(torch.tensor([0.5, -1.0, 2.0], dtype=F64).view(K, 1, 1))
        experts.output.bias.copy_(torch.tensor([1.0, 0.0, -2.0], dtype=F64).view(K, 1))
    table = Table(logits, slope)
    return ExpertLayer(table, experts, assignment, capacity=capacity, num_selected=m, combine=combine)


def log_likelihoods(layer: ExpertLayer, x: Tensor) -> Tensor:
    """Of every expert, nats (n, k): minus the losses."""
    return -losses_of(layer.experts.dense(x).movedim(-2, 0)).mT


def replicas(x: Tensor) -> Tensor:
    return x.expand(REPLICAS, *x.shape).clone().requires_grad_()


def gradients(surrogate: Tensor, *leaves: Tensor) -> Tensor:
    """(replicas, coordinates)"""
    return torch.cat([g.flatten(1) for g in torch.autograd.grad(surrogate.sum(), leaves, retain_graph=True)], -1)


def exactly(objective: Tensor, *leaves: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective, leaves)])


def exact_bound(law: AssignmentDistribution, f: Tensor) -> Tensor:
    """
    By enumeration of assignments. Rounding has no law to enumerate, but a datapoint that gets all experts but one is
    described by the one left out, which has probability 1 - π.
    """
    if not isinstance(law, DependentRounding):
        return exact_mixture_bound(law, f)
    log_inclusion = law.log_marginals
    terms = law.logits.log_softmax(-1) - log_inclusion + f
    left_out = torch.eye(K, dtype=torch.bool)
    bounds = terms.unsqueeze(-2).masked_fill(left_out, -torch.inf).logsumexp(-1)
    return ((1 - log_inclusion.exp()) * bounds).sum()


@pytest.mark.parametrize(("assignment", "m", "capacity"), SETTINGS)
def test_the_mixture_bound_against_enumeration(assignment, m, capacity):
    logits, x = problem(4, K)[0].requires_grad_(), inputs(4).requires_grad_()
    single = layer_of(logits, assignment, m, capacity)
    law = single.law(logits)
    exact = -exact_bound(law, log_likelihoods(single, x))
    exact_gradient = exactly(exact, logits, x)
    layer, many = layer_of(logits.detach().expand(REPLICAS, 4, K), assignment, m, capacity), replicas(x.detach())
    with record_routing() as routed:
        out = layer(many)
    assert out.shape == (REPLICAS, m, 4, 1)
    surrogate = routed.surrogate(losses_of(out), objective="mixture")
    assert surrogate.shape == (REPLICAS, 4)
    assert standard_errors_off(surrogate.detach().sum(-1, keepdim=True), exact.detach()) < 5
    assert standard_errors_off(gradients(surrogate, layer.router.logits, many), exact_gradient) < 5
    if m < K:  # without the weights the same check fails
        ((drawn, value),) = (visit.drawn for visit in routed.visits)
        log_p = drawn.router_log_prob(value)
        wrong = -mixture_bound(log_p.detach().masked_fill(value < 0, -torch.inf), log_p, -losses_of(out))
        assert standard_errors_off(gradients(wrong, layer.router.logits, many), exact_gradient) > 8


@pytest.mark.parametrize("assignment", [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding])
def test_the_mixture_bound_behind_another_layer(assignment):
    """The first layer enters as in the router objective, with the bound as the loss of a datapoint."""
    first, second = problem(4, K)[0].requires_grad_(), problem(8, K)[0][4:].requires_grad_()
    x = inputs(4).requires_grad_()
    table = layer_of(second, IndependentRouting, 2, None, slope=1.0)
    table.router.logits = nn.Parameter(second)
    leaves = (first, table.router.logits, x)
    outs = layer_of(first, assignment, None, 2).experts.dense(x)
    exact = torch.zeros((), dtype=F64)
    for j in range(K):
        hidden = outs[:, j]
        laws, f = table.router(hidden), log_likelihoods(table, hidden)
        for i in range(4):
            bound = exact_mixture_bound(IndependentRouting(laws[i : i + 1], num_selected=2), f[i : i + 1])
            exact = exact - first.softmax(-1)[i, j] * bound
    exact_gradient = exactly(exact, *leaves)

    many = replicas(x.detach())
    layers = [
        layer_of(first.detach().expand(REPLICAS, 4, K), assignment, None, 2),
        layer_of(second.detach().expand(REPLICAS, 4, K), IndependentRouting, 2, None, slope=1.0),
    ]
    with record_routing() as routed:
        out = layers[1](layers[0](many))
    surrogate = routed.surrogate(losses_of(out), objective="mixture")
    parameters = [layer.router.logits for layer in layers]
    assert standard_errors_off(surrogate.detach().sum(-1, keepdim=True), exact.detach()) < 5
    assert standard_errors_off(gradients(surrogate, *parameters, many), exact_gradient) < 5
    # Without the first layer's weights and score it fails.
    routed.visits.pop(0)
    without = routed.surrogate(losses_of(out), objective="mixture") + 0 * layers[0].router.logits.sum()
    assert standard_errors_off(gradients(without, *parameters, many), exact_gradient) > 8


def by_gates(layer: ExpertLayer, x: Tensor, values: Tensor) -> Tensor:
    """Datapoint by expert, (values, n, 1)."""
    p, outs = layer.router(x).softmax(-1), layer.experts.dense(x).squeeze(-1)
    held = torch.stack([(values == e).any(-2) for e in range(K)], -1)
    weight = p * held
    return ((weight * outs).sum(-1) / weight.sum(-1).clamp(min=1e-300)).unsqueeze(-1)


@pytest.mark.parametrize(("assignment", "capacity"), [(IndependentRouting, None), (CapacitySkip, 2), (CapacitySkip, 1)])
def test_gates_under_the_balanced_objective_against_enumeration(assignment, capacity):
    """The score is that of the sets; gates renormalise over those that process."""
    logits, x = problem(3, K)[0].requires_grad_(), inputs(3).requires_grad_()
    single = layer_of(logits, assignment, 2, capacity, "gates")
    single.router.logits = nn.Parameter(logits)
    law = single.law(single.router.logits)
    values = law.enumerate_support()
    exact = (law.log_prob(values).exp() * together(by_gates(single, x, values))).sum()
    exact_gradient = exactly(exact, single.router.logits, x)
    layer = layer_of(logits.detach().expand(REPLICAS, 3, K), assignment, 2, capacity, "gates")
    layer.baseline = DecayingAverage()
    many = replicas(x.detach())
    for _ in range(2):
        with record_routing() as routed:
            out = layer(many)
        assert out.shape == (REPLICAS, 3, 1)
        surrogate = routed.surrogate(together(out), objective="balanced")
        assert standard_errors_off(gradients(surrogate, layer.router.logits, many), exact_gradient) < 5
        layer.update()
    # Gates alone, without the score, are biased.
    alone = together(out)
    assert standard_errors_off(gradients(alone, layer.router.logits, many), exact_gradient) > 8


def test_rounding_has_no_law_for_the_balanced_objective():
    layer = layer_of(problem(4, K)[0], DependentRounding, 2, 3, "gates")
    with record_routing() as routed:
        out = layer(inputs(4))
    with pytest.raises(NotImplementedError, match="DependentRounding has no joint log_prob"):
        routed.surrogate(together(out), objective="balanced")


def test_what_nobody_processes_is_zero_and_has_no_gate():
    layer = layer_of(torch.zeros(4, K, dtype=F64), CapacitySkip, 2, 1, "gates")
    with record_routing() as routed:
        out = layer(inputs(4))
    value = routed.record().layers["experts"].value
    kept = (value >= 0).any(0)
    assert not bool(kept.all())  # 3 slots for 4 datapoints
    assert bool((out[~kept] == 0).all())
    residual = BatchedExperts(K, 1, None, 1, residual=True, dtype=F64)
    layer = ExpertLayer(layer.router, residual, CapacitySkip, capacity=1, num_selected=2, combine="gates")
    with record_routing() as routed:
        out = layer(inputs(4))
    kept = (routed.record().layers["experts"].value >= 0).any(0)
    assert torch.equal(out[~kept], inputs(4)[~kept])


# One formula for both worlds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("assignment", [IndependentRouting, CapacitySkip, DependentRounding])
@pytest.mark.parametrize("combine", [None, "gates"])
@pytest.mark.parametrize("training", [True, False])
def test_whatever_stands_in_padding_changes_nothing(assignment, combine, training):
    experts = BatchedExperts(4, 2, 3, 1, dtype=F64)
    layer = ExpertLayer(None, experts, assignment, capacity_factor=1.0, num_selected=2, combine=combine)
    layer.train(training)
    mask = torch.tensor([[True] * 7, [True, False] * 3 + [False]])
    x = torch.randn(2, 7, 2, dtype=F64)

    def results(filling):
        torch.manual_seed(2)
        with record_routing() as routed:
            out = layer(x.masked_fill(~mask.unsqueeze(-1), filling), mask)
        loss = out.square().sum(-1)
        if training and combine is None:
            loss = routed.surrogate(loss.masked_fill(~mask.unsqueeze(-2), filling), objective="mixture")
        elif training and assignment is not DependentRounding:
            loss = routed.surrogate(loss.sum(-1), objective="balanced")
        return [out, *torch.autograd.grad(loss.sum(), list(layer.experts.parameters()))]

    expected = results(0.0)
    assert bool((expected[0].movedim(-2, 1)[~mask] == 0).all())
    for filling in (torch.nan, 1e300):
        for ours, theirs in zip(results(filling), expected, strict=True):
            assert torch.equal(ours, theirs)


# Serving -------------------------------------------------------------------------------------------------------------


def test_serving_takes_the_favourites():
    experts, x = BatchedExperts(4, 2, 3, 1, dtype=F64), torch.randn(9, 2, dtype=F64)
    gated = ExpertLayer(None, experts, capacity_factor=1.0, num_selected=2, combine="gates").eval()
    apart = ExpertLayer(gated.router, experts, capacity_factor=1.0, num_selected=2).eval()
    chosen = gated.router(x).topk(2, -1).indices.sort(-1).values
    p = gated.router(x).softmax(-1).gather(-1, chosen)
    outs = experts.dense(x).squeeze(-1).gather(-1, chosen)
    torch.testing.assert_close(gated(x).squeeze(-1), (p * outs).sum(-1) / p.sum(-1))
    torch.testing.assert_close(apart(x).squeeze(-1), outs.mT)
    torch.testing.assert_close(gated(x[4:5]), gated(x)[4:5])


# What is refused -----------------------------------------------------------------------------------------------------

BAD = [
    (dict(num_selected=0), "num_selected must be a positive int"),
    (dict(combine="gates"), 'combine must be None, or "gates" with num_selected'),
    (dict(combine="sum", num_selected=2), "combine must be None"),
    (dict(assignment=Switch, num_selected=2), "num_selected=2 is for distributions: give Switch its own option"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ExpertLayer(None, BatchedExperts(K, 1, None, 1), **{"assignment": CapacitySkip, "capacity": 3} | options)


def recorded(m=2, assignment=CapacitySkip, **options):
    layer = layer_of(torch.zeros(4, K, dtype=F64), assignment, m, 3, **options)
    with record_routing() as routed:
        out = layer(inputs(4))
    return routed, losses_of(out)


def test_bad_calls():
    routed, losses = recorded()
    with pytest.raises(ValueError, match=r"loss must have one entry for each selected expert and datapoint.*\(2, 4\)"):
        routed.surrogate(losses.sum(0), objective="mixture")
    with pytest.raises(ValueError, match='num_selected=None; use objective="mixture" with combine=None'):
        routed.surrogate(losses.sum(0), objective="router")
    routed, losses = recorded(m=1)
    with pytest.raises(NotImplementedError, match="num_selected=1 of 3 experts"):
        routed.surrogate(losses, objective="mixture")
    with torch.no_grad():
        assert routed.surrogate(losses, objective="mixture").shape == (4,)
    for options in ({"m": None}, {"combine": "gates"}):
        routed, losses = recorded(**options)
        with pytest.raises(ValueError, match="num_selected >= 2 and combine=None, but 'experts' is another"):
            routed.surrogate(losses, objective="mixture")
    routed, losses = recorded()
    object.__setattr__(routed.visits[0], "baseline", DecayingAverage())
    with pytest.raises(ValueError, match="has no score function, so give no baseline"):
        routed.surrogate(losses, objective="mixture")
    with pytest.raises(NotImplementedError, match="DependentRounding"):
        recorded(assignment=GumbelMatching)
    with pytest.raises(ValueError, match="num_selected=2, where num_selected=None: give it to the layer"):
        recorded(m=None, assignment=partial(CapacitySkip, num_selected=2))
