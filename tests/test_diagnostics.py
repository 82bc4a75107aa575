"""Diagnostics against plain loops and closed cases; what a recorder sees of a training step."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from models.piecewise import piecewise_data, piecewise_mixture
from prob_moe.diagnostics import (
    RoutingRecorder,
    dead_experts,
    drop_rate,
    effective_experts,
    effective_sample_size,
    max_mean_load,
    pareto_k,
    responsibility_entropy,
    router_entropy,
    routing_diagnostics,
    usage_perplexity,
)
from prob_moe.distributions import CapacitySkip, DependentRounding, GumbelMatching, IndependentRouting
from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts

PROCEDURES = [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding]


def by_loops(logits: Tensor, value: Tensor, weights: Tensor, mask: Tensor) -> list[float]:
    """All diagnostics of one batch, (n, k) and (n,), in the order of the tuple."""
    n, k = logits.shape
    present = [i for i in range(n) if mask[i]]
    loads = [sum(1 for i in present if value[i] == j) for j in range(k)]
    shares = [load / sum(loads) for load in loads]
    entropies = []
    for i in present:
        odds = [math.exp(phi) for phi in logits[i].tolist()]
        entropies.append(-sum(o / sum(odds) * math.log(o / sum(odds)) for o in odds if o))
    w = [float(weights[i]) for i in present]
    return [
        max(loads) / (sum(loads) / k),
        sum(load == 0 for load in loads),
        math.exp(-sum(s * math.log(s) for s in shares if s)),
        sum(1 for i in present if value[i] < 0) / len(present),
        sum(w) ** 2 / (len(w) * sum(v * v for v in w)),
        sum(entropies) / len(entropies),
        sum((v if v >= 0 else ~v) == int(logits[i].argmax()) for i in present for v in [int(value[i])]) / len(present),
    ]


@pytest.mark.parametrize("procedure", PROCEDURES)
@pytest.mark.parametrize("masked", [False, True])
def test_all_of_a_draw_against_loops(procedure: type, masked: bool) -> None:
    logits = 2 * torch.randn(3, 9, 4, dtype=torch.float64)
    logits[0, 2, 1] = -torch.inf
    mask = torch.rand(3, 9) < 0.7 if masked else torch.ones(3, 9, dtype=torch.bool)
    routing = procedure(logits, capacity=3, **({"mask": mask} if masked else {}))
    value = routing.sample((2,))
    weights = routing.importance_weights(value)
    diagnostics = routing_diagnostics(routing, value)
    for s in range(2):
        for b in range(3):
            expected = by_loops(logits[b], value[s, b], weights[s, b], mask[b])
            assert [float(tensor[s, b]) for tensor in diagnostics] == pytest.approx(expected, rel=1e-5)


def test_closed_cases() -> None:
    balanced, collapsed = torch.tensor([3, 3, 3, 3]), torch.tensor([0, 12, 0, 0])
    loads = torch.stack([balanced, collapsed])
    assert max_mean_load(loads).tolist() == [1, 4]
    assert dead_experts(loads).tolist() == [0, 3]
    torch.testing.assert_close(usage_perplexity(loads), torch.tensor([4.0, 1.0]))
    assert effective_sample_size(torch.tensor([[3.0, 3, 3, 3], [0, 7, 0, 0]])).tolist() == [1, 0.25]
    torch.testing.assert_close(
        router_entropy(torch.tensor([[[0.0, 0, 0]], [[0, -torch.inf, -torch.inf]]])), torch.tensor([math.log(3), 0])
    )
    assert drop_rate(torch.tensor([[0, 1], [~0, 1], [~0, ~1]])).tolist() == [0, 0.5, 1]


def test_huge_weights_do_not_overflow() -> None:
    weights = torch.tensor([1e30, 1e30, 0, 0])
    assert effective_sample_size(weights) == 0.5


def test_nothing_to_count_is_no_nan() -> None:
    mask = torch.zeros(5, dtype=torch.bool)
    routing = CapacitySkip(torch.full((5, 3), torch.nan), capacity=1, mask=mask)
    assert [float(tensor) for tensor in routing_diagnostics(routing, routing.sample())] == [0, 3, 1, 0, 0, 0, 0]
    empty = IndependentRouting(torch.zeros(0, 3))
    assert [float(tensor) for tensor in routing_diagnostics(empty, empty.sample())] == [0, 3, 1, 0, 0, 0, 0]
    assert effective_sample_size(torch.zeros(4)) == 0


def test_nothing_waits_for_the_device() -> None:
    """Fake tensors have no values: whatever would look at one raises."""
    with FakeTensorMode():
        loads, value, mask = torch.ones(2, 4).long(), torch.zeros(2, 9).long(), torch.ones(2, 9).bool()
        for tensor in (
            max_mean_load(loads),
            dead_experts(loads),
            usage_perplexity(loads),
            drop_rate(value, mask),
            effective_sample_size(torch.rand(2, 9), mask),
            router_entropy(torch.rand(2, 9, 4), mask),
            *routing_diagnostics(IndependentRouting(torch.rand(2, 9, 4), validate_args=False), value),
        ):
            assert tensor.shape == (2,)
        with pytest.raises(RuntimeError):
            float(drop_rate(value, mask)[0])


@pytest.mark.parametrize("kind", ["router objective", "particles", "balanced", "balanced, graph"])
def test_recorder_sees_the_draws_of_a_step(kind: str) -> None:
    mixture = MixtureOfExperts(
        nn.Linear(2, 3),
        BatchedExperts(3, 2, None, 1),
        lambda out: pyro.distributions.Normal(out.squeeze(-1), 1.0),
        assignment=CapacitySkip,
        capacity_factor=1.0,
    )
    x, y = torch.randn(8, 2), torch.randn(8)
    recorder = RoutingRecorder()
    drawn = []
    for _ in range(3):
        with recorder:
            if kind.startswith("balanced"):
                guide = poutine.block(mixture, expose=["assignment"]) if kind.endswith("graph") else None
                elbo = TraceBalanced_ELBO() if guide is None else TraceGraph_ELBO()
                elbo.loss_and_grads(mixture, guide, x, y)
            else:
                particles = {"num_particles": 2, "vectorize_particles": True} if kind == "particles" else {}
                elbo = TraceRouting_ELBO(max_plate_nesting=1, **particles)
                elbo.loss_and_grads(mixture, lambda x, y: None, x, y)
        _, value = recorder.draws["assignment"]
        drawn.append(value)
        diagnostics = recorder.diagnostics()["assignment"]
        assert diagnostics.drop_rate.shape == ((2, 1) if kind == "particles" else ())
        torch.testing.assert_close(diagnostics.drop_rate, (value < 0).float().mean(-1))
    assert len({str(value.tolist()) for value in drawn}) > 1


def test_recorder_leaves_observed_assignments_out() -> None:
    with RoutingRecorder() as recorder:
        pyro.sample("z", IndependentRouting(torch.zeros(3, 2)), obs=torch.tensor([0, 1, 0]))
    assert recorder.draws == {}


def test_bad_arguments() -> None:
    routing = GumbelMatching(torch.zeros(4, 2), capacity=2)
    with pytest.raises(ValueError, match=r"value must be a long tensor .* \+ \(4,\), got torch.int64 of shape \(3,\)"):
        routing_diagnostics(routing, torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="carries no draw"):
        routing_diagnostics(routing, torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"mask must be a bool tensor, got torch.float32"):
        drop_rate(torch.tensor([0, 1]), torch.ones(2))
    with pytest.raises(ValueError, match=r"mask of shape \(3,\) does not broadcast to \(2,\)"):
        drop_rate(torch.tensor([0, 1]), torch.ones(3).bool())


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.8, 1.2])
def test_pareto_k_finds_the_shape_of_pareto_weights(shape: float) -> None:
    """The fit to the M largest has a standard error near (1 + k) / sqrt(M), and M = 3 sqrt(n)."""
    weights = torch.rand(8, 40_000, dtype=torch.float64) ** -shape
    estimates = pareto_k(weights)
    assert estimates.shape == (8,)
    assert ((estimates - shape).abs() < 5 * (1 + shape) / 600**0.5).all()
    # Single rows, scales and orders do not matter.
    assert pareto_k(1e-9 * weights[3].flip(-1)) == pytest.approx(float(estimates[3]))


def test_pareto_k_of_bounded_weights_is_small_and_of_no_tail_is_minus_infinity() -> None:
    assert pareto_k(torch.rand(10_000)) < 0
    assert pareto_k(torch.full((50,), 3.0)) == -math.inf
    # The same where the largest weight is the whole tail, and where weights differ by rounding.
    shared = torch.cat([torch.ones(900), torch.full((40,), 3.0)]).double()
    assert pareto_k(shared) == -math.inf
    assert pareto_k(3 + 1e-12 * torch.randn(940, dtype=torch.float64)) == -math.inf
    # A few that stand alone are not a tail that could be trusted.
    assert pareto_k(torch.cat([torch.ones(900), torch.tensor([50.0, 60.0, 70.0])])) == math.inf
    routing = DependentRounding(3 * torch.randn(128, 8), capacity=16)
    assert pareto_k(routing.importance_weights(routing.sample((50,))).flatten()) < 0.5


def test_pareto_k_does_not_count_padding_but_counts_drops() -> None:
    weights = torch.rand(2, 300, dtype=torch.float64) ** -0.5
    mask = torch.rand(2, 300) < 0.7
    padded = pareto_k(weights.masked_fill(~mask, torch.nan), mask)
    for b in range(2):
        assert padded[b] == pareto_k(weights[b][mask[b]])
    # Zeros shift the cutoff: more of the weights are in the tail.
    assert pareto_k(torch.cat([weights[0], torch.zeros(600)])) != pareto_k(weights[0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(20), "row of 20 datapoints, too few to fit a tail: give at least 21"),
        (torch.full((30,), torch.nan), "must be finite and >= 0"),
        (-torch.ones(30), "must be finite and >= 0"),
    ],
)
def test_pareto_k_refuses_what_has_no_tail(weights: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pareto_k(weights)


def test_agreement_counts_dropped_choices_and_leaves_padding_out() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0], [0.0, 3.0], [3.0, 0.0]])
    mask = torch.tensor([True, True, True, False])
    routing = CapacitySkip(logits, capacity=1, mask=mask)
    z = torch.tensor([0, 1, ~1, -1])
    assert routing_diagnostics(routing, z).agreement == 1
    assert routing_diagnostics(routing, torch.tensor([~0, 0, 1, -1])).agreement == pytest.approx(2 / 3)


@pytest.mark.parametrize("procedure", [IndependentRouting, CapacitySkip, DependentRounding])
def test_several_experts_per_datapoint_against_counting(procedure):
    logits = 2 * torch.randn(10, 4)
    mask = torch.tensor([True] * 8 + [False] * 2)
    routing = procedure(logits, capacity=3, num_selected=2, mask=mask)
    value = routing.sample()
    found = routing_diagnostics(routing, value)
    entries = [(i, int(e)) for i in range(8) for e in value[:, i]]
    loads = [sum(e == j for _, e in entries) for j in range(4)]
    assert float(found.max_mean_load) == pytest.approx(4 * max(loads) / sum(loads))
    assert int(found.dead_experts) == loads.count(0)
    lost = [i for i in range(8) if all(e < 0 for j, e in entries if j == i)]
    assert float(found.drop_rate) == pytest.approx(len(lost) / 8)
    favourites = logits.argmax(-1)
    among = [any(int(favourites[i]) in (e, ~e) for j, e in entries if j == i) for i in range(8)]
    assert float(found.agreement) == pytest.approx(sum(among) / 8)
    weights = routing.importance_weights(value)[:, :8].flatten()
    assert float(found.weight_ess) == pytest.approx(float(weights.sum() ** 2 / (16 * weights.square().sum())))


def test_responsibilities_against_a_loop():
    log_joint = 3 * torch.randn(5, 3, 7, dtype=torch.float64)
    log_joint[torch.rand(5, 3, 7) < 0.3] = -torch.inf
    log_joint[0, :, 0] = -torch.inf
    mask = torch.rand(5, 7) < 0.8
    mask[:, 1] = True
    log_joint[:, 0, 1] = 0.0
    for b in range(5):
        entropies = []
        for i in range(7):
            kept = log_joint[b, :, i][log_joint[b, :, i] > -torch.inf]
            if len(kept) and mask[b, i]:
                omega = kept.softmax(-1)
                entropies.append(float(-(omega * omega.log()).sum()))
        counts = [math.exp(entropy) for entropy in entropies]
        assert float(responsibility_entropy(log_joint, mask)[b]) == pytest.approx(sum(entropies) / len(entropies))
        assert float(effective_experts(log_joint, mask)[b]) == pytest.approx(sum(counts) / len(counts))
    assert float(effective_experts(torch.full((2, 3), -torch.inf))) == 0


def test_the_recorder_sees_the_responsibilities_of_a_step():
    mixture = piecewise_mixture(DependentRounding)
    mixture.num_selected, mixture.baseline = 2, None
    x, y = piecewise_data((), 20)
    with RoutingRecorder() as recorder:
        mixture(x, y)
    (log_joint,) = recorder.log_joint.values()
    # Both of two experts: the weights are the router's, and the responsibilities the posterior's.
    order = recorder.draws["assignment"][1]
    torch.testing.assert_close(log_joint.softmax(-2), mixture.responsibilities(x, y).mT.gather(-2, order))
    assert recorder.diagnostics()["assignment"].agreement == 1
