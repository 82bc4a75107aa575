"""What every assignment distribution owes: shapes, support, capacity, unbiased weights, expansion."""

import copy
import pickle

import pyro
import pytest
import torch
from pyro.infer.tracegraph_elbo import TrackNonReparam
from pyro.ops.provenance import get_provenance

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.distributions.support import router_choices

DISTRIBUTIONS = [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding]
SHAPES = [(6, 3, 2), (6, 3, 3), (5, 2, 3), (4, 4, 1), (2, 3, 1), (3, 1, 3), (1, 1, 1)]


def logits_of(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return 1.5 * torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("n", "k", "capacity"), SHAPES)
def test_shapes_and_support(distribution: type[AssignmentDistribution], n: int, k: int, capacity: int) -> None:
    routing = distribution(logits_of(2, 3, n, k), capacity=capacity, validate_args=True)
    value = routing.sample((5, 4))
    assert value.dtype == torch.long
    assert value.shape == (5, 4, 2, 3, n) == routing.shape((5, 4))
    assert routing.infer_shapes(torch.Size([2, 3, n, k])) == (routing.batch_shape, routing.event_shape)
    assert routing.support.check(value).all()
    assert (routing.loads(value).sum(-1) == routing.processed(value).sum(-1)).all()
    if routing.limited:
        assert routing.loads(value).max() <= capacity
    assert routing.support.check(routing.mode).all()
    assert routing.importance_weights(value).shape == value.shape
    assert routing.router_log_prob(value).shape == value.shape


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("n", "k", "capacity"), [(6, 3, 2), (6, 3, 3), (5, 2, 3), (4, 4, 1), (2, 3, 1)])
def test_weights_are_unbiased(distribution: type[AssignmentDistribution], n: int, k: int, capacity: int) -> None:
    routing = distribution(logits_of(n, k), capacity=capacity)
    assert off_by(routing, weighted=True) < 5


@pytest.mark.parametrize(("distribution", "capacity"), [(CapacitySkip, 2), (CapacitySkip, 3), (GumbelMatching, 2)])
def test_without_weights_the_check_fails(distribution: type[AssignmentDistribution], capacity: int) -> None:
    assert off_by(distribution(logits_of(6, 3), capacity=capacity), weighted=False) > 10


def off_by(routing: AssignmentDistribution, *, weighted: bool, num_samples: int = 20_000) -> float:
    """Largest distance of E[w 1{z_i = j}] from p_ij in standard errors, over all i, j."""
    value = routing.sample((num_samples,))
    weights = routing.importance_weights(value) if weighted else routing.processed(value).double()
    choices = torch.nn.functional.one_hot(router_choices(value), routing.num_experts)
    samples = weights.unsqueeze(-1) * choices
    deviation = (samples.std(0) / num_samples**0.5).clamp(min=1e-12)
    return float(((samples.mean(0) - routing.logits.softmax(-1)) / deviation).abs().max())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_expand_draws_independent_noise_and_enumerates(distribution: type[AssignmentDistribution]) -> None:
    routing = distribution(logits_of(4, 2), capacity=2).expand([200])
    value = routing.sample()
    assert value.shape == (200, 4)
    assert len(value.unique(dim=0)) > 1
    assert routing.importance_weights(value).shape == (200, 4)
    if not routing.has_enumerate_support:
        with pytest.raises(NotImplementedError):
            routing.enumerate_support()
        return
    support = routing.enumerate_support()
    assert support.shape[1:] == (200, 4)
    assert routing.enumerate_support(expand=False).shape == (len(support), 1, 4)
    assert routing.support.check(support).all()
    assert len(support[:, 0].unique(dim=0)) == len(support)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtype_is_kept(distribution: type[AssignmentDistribution], dtype: torch.dtype) -> None:
    routing = distribution(logits_of(6, 3).to(dtype), capacity=2)
    value = routing.sample()
    assert routing.importance_weights(value).dtype == dtype
    assert routing.router_log_prob(value).dtype == dtype


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_same_seed_same_draw(distribution: type[AssignmentDistribution]) -> None:
    routing = distribution(logits_of(6, 3), capacity=2)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(routing.sample((10,)))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], routing.sample((10,)))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_copies_go_on(distribution: type[AssignmentDistribution]) -> None:
    routing = distribution(logits_of(6, 3), capacity=2)
    value = routing.sample()
    for copied in (copy.deepcopy(routing), pickle.loads(pickle.dumps(routing))):
        torch.testing.assert_close(copied.importance_weights(value), routing.importance_weights(value))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_padding_takes_no_part(distribution: type[AssignmentDistribution]) -> None:
    mask = torch.tensor([True, True, False, True, False, True])
    logits = logits_of(6, 2)
    logits[2] = torch.nan  # whatever stands in padding does not matter
    routing = distribution(logits, capacity=2, mask=mask, validate_args=True)
    value = routing.sample((500,))
    assert (value[:, ~mask] == -1).all()
    assert routing.support.check(value).all()
    weights = routing.importance_weights(value)
    assert (weights[:, ~mask] == 0).all()
    assert torch.isfinite(weights).all()
    assert (routing.router_log_prob(value)[:, ~mask] == 0).all()
    assert routing.loads(value).sum(-1).max() <= 4
    torch.manual_seed(0)
    alone = distribution(logits[mask], capacity=2)
    ours = torch.nn.functional.one_hot(router_choices(value[:, mask]), 2).double().mean(0)
    theirs = torch.nn.functional.one_hot(router_choices(alone.sample((20_000,))), 2).double().mean(0)
    assert (ours - theirs).abs().max() < 5 * 0.5 / 500**0.5


@pytest.mark.parametrize("distribution", [IndependentRouting, CapacitySkip])
def test_log_prob_keeps_provenance(distribution: type[AssignmentDistribution]) -> None:
    with TrackNonReparam():
        trace = pyro.poutine.trace(lambda: pyro.sample("z", distribution(logits_of(6, 3), capacity=2))).get_trace()
    trace.compute_log_prob()
    assert "z" in get_provenance(trace.nodes["z"]["log_prob"])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_capacity_factor(distribution: type[AssignmentDistribution]) -> None:
    assert distribution(logits_of(10, 4), capacity_factor=1.1).capacity == 3
    assert distribution(logits_of(10, 1), capacity_factor=1.1).capacity == 11


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_forbidden_experts_are_not_used(distribution: type[AssignmentDistribution]) -> None:
    logits = logits_of(4, 2)
    logits[:2, 0] = -torch.inf
    routing = distribution(logits, capacity=2, validate_args=True)
    value = routing.sample((100,))
    assert (router_choices(value)[:, :2] == 1).all()
    assert torch.isfinite(routing.importance_weights(value)).all()


BAD_ARGUMENTS = [
    (dict(logits=torch.zeros(6, 3), capacity=0), "capacity must be a positive int, got 0"),
    (dict(logits=torch.zeros(6, 3), capacity=2.0), "capacity must be a positive int, got 2.0"),
    (dict(logits=torch.zeros(6, 3), capacity=True), "capacity must be a positive int, got True"),
    (dict(logits=torch.zeros(6, 3), capacity_factor=-1.0), "capacity_factor must be positive"),
    (dict(logits=torch.zeros(6, 3), capacity=2, capacity_factor=1.0), "not both"),
    (dict(logits=torch.zeros(6, 3, dtype=torch.long), capacity=2), "logits must be .* floating-point .*int64"),
    (dict(logits=torch.zeros(6), capacity=2), r"shape \(\*batch, n, k\).*\(6,\)"),
    (dict(logits=torch.full((6, 3), torch.nan), capacity=2), r"logits of shape \(6, 3\) contain NaN"),
    (dict(logits=torch.full((6, 3), torch.inf), capacity=2), r"contain \+inf"),
    (dict(logits=torch.full((6, 3), -torch.inf), capacity=2), r"forbid every expert to datapoint \[0\]"),
    (dict(logits=torch.zeros(6, 3), capacity=2, mask=torch.ones(6)), "mask must be a bool tensor, got torch.float32"),
    (dict(logits=torch.zeros(6, 3), capacity=2, mask=torch.ones(5, dtype=torch.bool)), r"mask of shape \(5,\)"),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("arguments", "message"), BAD_ARGUMENTS)
def test_bad_arguments(distribution: type[AssignmentDistribution], arguments: dict, message: str) -> None:
    logits = arguments["logits"]
    with pytest.raises(ValueError, match=message):
        distribution(logits, validate_args=True, **{k: v for k, v in arguments.items() if k != "logits"})


@pytest.mark.parametrize("distribution", [CapacitySkip, GumbelMatching])
def test_too_many_datapoints(distribution: type[AssignmentDistribution]) -> None:
    with pytest.raises(ValueError, match=r"n = 7 datapoints exceed .* 3 \* 2 slots .*\(7, 3\).*at least 3"):
        distribution(torch.zeros(7, 3), capacity=2)
    with pytest.raises(ValueError, match="one of capacity and capacity_factor"):
        distribution(torch.zeros(7, 3))


@pytest.mark.parametrize("distribution", [IndependentRouting, CapacitySkip])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(6), "long tensor of expert indices, got torch.float32"),
        (torch.zeros(5, dtype=torch.long), r"shape \(5,\) must end in n = 6"),
        (torch.zeros(4, 6, dtype=torch.long), r"\(4, 6\) does not broadcast to batch_shape \(2,\)"),
        (torch.full((6,), 3), "outside the support"),
        (torch.full((6,), -4), "outside the support"),
    ],
)
def test_bad_values(distribution: type[AssignmentDistribution], value: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distribution(torch.zeros(2, 6, 3), capacity=3, validate_args=True).log_prob(value)
