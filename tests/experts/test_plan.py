import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prob_moe.experts import combine, dispatch, dispatch_plan
from tests.experts.oracle import random_assignment


def _plan_by_loop(assignment, k, c, mask):
    slots, sources, loads = [-1] * len(assignment), [[-1] * c for _ in range(k)], [0] * k
    for i, e in enumerate(assignment.tolist()):
        if e >= 0 and mask[i]:
            slots[i], sources[e][loads[e]] = e * c + loads[e], i
            loads[e] += 1
    return slots, sources, loads


@pytest.mark.parametrize(("n", "k", "c"), [(12, 3, 4), (12, 3, 20), (2, 5, 1), (0, 3, 2), (9, 1, 9)])
def test_plan_equals_loop(n, k, c):
    assignment = random_assignment(3, 2, n, num_experts=k, capacity=c)
    mask = torch.rand(3, 2, n) < 0.8
    plan = dispatch_plan(assignment, k, c, mask)
    for p in range(3):
        for s in range(2):
            slots, sources, loads = _plan_by_loop(assignment[p, s], k, c, mask[p, s])
            assert plan.slots[p, s].tolist() == slots
            assert plan.sources[p, s].tolist() == sources
            assert plan.loads[p, s].tolist() == loads


@settings(max_examples=60)
@given(n=st.integers(0, 20), k=st.integers(1, 6), c=st.integers(1, 8), d=st.integers(1, 3), seed=st.integers(0, 99))
def test_whoever_has_a_slot_comes_back_as_they_went(n, k, c, d, seed):
    generator = torch.Generator().manual_seed(seed)
    # Overfull experts included: whoever comes too late has no slot.
    assignment = torch.randint(-k, k, (n,), generator=generator)
    x = torch.randn(n, d, generator=generator)
    plan = dispatch_plan(assignment, k, c, validate_args=False)
    there_and_back = combine(dispatch(x, plan), plan)
    seated = plan.slots >= 0
    assert torch.equal(there_and_back, torch.where(seated.unsqueeze(-1), x, 0.0))
    assert int(seated.sum()) == int(plan.loads.sum()) == sum(min(c, int((assignment == e).sum())) for e in range(k))
    assert len(set(plan.slots[seated].tolist())) == int(seated.sum())


def test_unchecked_overflow_and_unknown_experts_take_no_slot():
    assignment = torch.tensor([0, 0, 0, 7, -9, 1])
    plan = dispatch_plan(assignment, num_experts=2, capacity=2, validate_args=False)
    assert plan.slots.tolist() == [0, 1, -1, -1, -1, 2]
    assert plan.sources.tolist() == [[0, 1], [5, -1]]
    assert plan.loads.tolist() == [2, 1]


def test_values_are_checked_whatever_the_switch_for_distributions_says():
    """torch.compile turns that switch off for the whole process."""
    overfull = torch.zeros(3, dtype=torch.long)
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with pytest.raises(ValueError, match="capacity=2"):
            dispatch_plan(overfull, 1, 2)
        assert dispatch_plan(overfull, 1, 2, validate_args=False).loads.tolist() == [2]
    finally:
        torch.distributions.Distribution.set_default_validate_args(True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 0}, "num_experts must be a positive int, but is 0"),
        ({"capacity": 0}, "capacity must be a positive int, but is 0"),
        ({"capacity": 1.5}, "capacity must be a positive int, but is 1.5"),
        ({"capacity": True}, "capacity must be a positive int, but is True"),
        ({"assignment": torch.zeros(4, dtype=torch.int32)}, "assignment must be a long tensor"),
        ({"assignment": torch.tensor(0)}, "assignment must have shape"),
        ({"assignment": torch.tensor([0, 1, 2, 0])}, "assignment must name experts 0..1, .* names expert 2"),
        ({"assignment": torch.tensor([0, 1, ~2, 0])}, "assignment must name experts 0..1, .* names expert 2"),
        ({"assignment": torch.tensor([0, 0, 0, 1])}, "3 datapoints, more than capacity=2"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask must be .* shape \(4,\), but has .* shape \(3,\)"),
        ({"mask": torch.ones(4)}, "mask must be a bool tensor"),
    ],
)
def test_wrong_argument_is_named(change, message):
    arguments = {"assignment": torch.tensor([0, 1, ~1, 0]), "num_experts": 2, "capacity": 2, "mask": None}
    dispatch_plan(**arguments)
    with pytest.raises(ValueError, match=message):
        dispatch_plan(**{**arguments, **change})


def test_masked_datapoints_are_not_checked():
    mask = torch.tensor([True, False, False])
    assert dispatch_plan(torch.tensor([0, 0, 99]), 1, 1, mask).loads.tolist() == [1]
