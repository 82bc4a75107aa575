"""What every assignment distribution owes: the public kit on each of ours, and the refusals word by word."""

from functools import partial

import pyro
import pytest
import torch

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.testing import check_assignment_distribution, sizes_of_sets

DISTRIBUTIONS = [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding]
#: the relative error that log_prob claims for its numerical integral, where it is one
LOG_PROB_TOLERANCE = {GumbelMatching: 0.005}


def logits_of(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return 1.5 * torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_contract(distribution: type[AssignmentDistribution]) -> None:
    report = check_assignment_distribution(distribution, log_prob_tolerance=LOG_PROB_TOLERANCE.get(distribution, 1e-6))
    # Nothing that can be checked goes unchecked.
    assert "weights are unbiased" in report.passed
    assert "padding takes no part" in report.passed
    assert ("capacity holds" in report.passed) == distribution.limited
    assert ("the enumeration is the support" in report.passed) == distribution.has_enumerate_support
    assert ("log_prob equals frequencies" in report.passed) == (distribution is not DependentRounding)


@pytest.mark.parametrize("num_selected", [1, 2, 3])
@pytest.mark.parametrize("distribution", [IndependentRouting, CapacitySkip, DependentRounding])
def test_contract_of_sets(distribution: type[AssignmentDistribution], num_selected: int) -> None:
    make = partial(distribution, num_selected=num_selected)
    report = check_assignment_distribution(make, sizes=sizes_of_sets(num_selected))
    assert "weights are unbiased" in report.passed
    assert "keep probabilities count who is kept" in report.passed
    assert ("weights of pairs are unbiased" in report.passed) == (distribution is not DependentRounding)
    assert ("log_prob equals frequencies" in report.passed) == (distribution is not DependentRounding)
    assert ("the enumeration is the support" in report.passed) == distribution.has_enumerate_support


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_capacity_factor(distribution: type[AssignmentDistribution]) -> None:
    for k, capacity in ((4, 3), (1, 11)):
        routing = distribution(logits_of(10, k), capacity_factor=1.1)
        assert routing.capacity == (capacity if distribution.limited else None)
        assert routing.slots == (min(capacity, 10) if distribution.limited else 10)


BAD_ARGUMENTS = [
    (dict(logits=torch.zeros(6, 3), capacity=0), "capacity must be a positive int, got 0"),
    (dict(logits=torch.zeros(6, 3), capacity=torch.tensor(0)), "capacity must be positive for every .*, got 0"),
    (dict(logits=torch.zeros(6, 3), capacity=torch.tensor(2.0)), "capacity must be .* got a tensor of torch.float32"),
    (dict(logits=torch.zeros(6, 3), capacity=torch.ones(2).long()), r"capacity of shape \(2,\) does not broadcast"),
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


def test_too_many_datapoints() -> None:
    message = r"n = 7 datapoints exceed .* 3 \* 2 slots .*\(7, 3\).*at least 3.*CapacitySkip or DependentRounding"
    for arguments in ({"capacity": 2}, {"capacity_factor": 0.8}, {"capacity": torch.tensor(2)}):
        with pytest.raises(ValueError, match=message):
            GumbelMatching(torch.zeros(7, 3), **arguments)


@pytest.mark.parametrize("distribution", [CapacitySkip, GumbelMatching, DependentRounding])
def test_a_capacity_is_needed(distribution: type[AssignmentDistribution]) -> None:
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


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_validation_outlives_torch_compile_and_follows_pyro(distribution: type[AssignmentDistribution]) -> None:
    torch.distributions.Distribution.set_default_validate_args(False)  # what torch.compile does at its first use
    with pytest.raises(ValueError, match="contain NaN"):
        distribution(torch.full((4, 2), torch.nan), capacity=2)
    with pyro.validation_enabled(False):
        distribution(torch.full((4, 2), torch.nan), capacity=2)
