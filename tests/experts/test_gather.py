import pytest
import torch
from pyro.ops.provenance import get_provenance, track_provenance

from prob_moe.experts import combine, dispatch, dispatch_plan
from tests.experts.oracle import random_assignment


def _case(*batch, n=9, k=3, c=4):
    assignment = random_assignment(*batch, n, num_experts=k, capacity=c)
    return assignment, dispatch_plan(assignment, k, c)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_dispatch_fills_slots_and_combine_inverts_it(batch):
    assignment, plan = _case(*batch)
    x = torch.randn(*batch, 9, 5)
    slots = dispatch(x, plan)
    assert slots.shape == (*batch, 3, 4, 5)
    padded = torch.cat([x, torch.zeros(*batch, 1, 5)], -2)  # row -1: empty
    index = plan.sources.flatten(-2).unsqueeze(-1) % 10
    expected = padded.take_along_dim(index, -2).reshape(*batch, 3, 4, 5)
    assert torch.equal(slots, expected)
    back = torch.where((assignment >= 0).unsqueeze(-1), x, 0)
    assert torch.equal(combine(slots, plan), back)
    assert torch.equal(combine(slots.contiguous(), plan), back)


def test_dropped_rows_are_zero_whatever_the_empty_slots_hold():
    plan = dispatch_plan(torch.tensor([0, ~0, 1]), 2, 2)
    expert_out = torch.full((2, 2, 1), float("nan"))
    expert_out[0, 0], expert_out[1, 0] = 1.0, 2.0
    assert combine(expert_out, plan).flatten().tolist() == [1.0, 0.0, 2.0]


@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients_and_their_gradients(batch):
    _, plan = _case(*batch)
    x = torch.randn(*batch, 9, 2, dtype=torch.float64, requires_grad=True)
    out = torch.randn(*batch, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    for move, data in ((dispatch, x), (combine, out)):
        assert torch.autograd.gradcheck(lambda data, move=move: move(data, plan).square(), data)
        assert torch.autograd.gradgradcheck(lambda data, move=move: move(data, plan).square(), data)


def test_data_broadcasts_to_the_batch_of_the_plan():
    _, plan = _case(2, 3)
    x = torch.randn(3, 9, 5)
    assert torch.equal(dispatch(x, plan), dispatch(x.expand(2, 3, 9, 5), plan))


def test_vmap_over_data():
    _, plan = _case()
    x = torch.randn(6, 9, 5)
    assert torch.equal(torch.vmap(lambda x: dispatch(x, plan))(x), torch.stack([dispatch(row, plan) for row in x]))


def test_provenance_and_gradient_survive_a_tracked_assignment():
    assignment, plan = _case()
    x = torch.randn(9, 5, requires_grad=True)
    tracked = dispatch_plan(track_provenance(assignment, frozenset({"z"})), 3, 4)
    back = combine(dispatch(x, tracked), tracked)
    assert get_provenance(back) == {"z"}
    (gradient,) = torch.autograd.grad(back.sum(), x)
    (expected,) = torch.autograd.grad(combine(dispatch(x, plan), plan).sum(), x)
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(
    ("move", "shape", "name"),
    [(dispatch, (8, 5), "x"), (dispatch, (2, 9, 5), "x"), (combine, (3, 5, 5), "expert_out"), (combine, (), "exp")],
)
def test_wrong_shape_is_named(move, shape, name):
    _, plan = _case()
    with pytest.raises(ValueError, match=rf"^{name}.* must have shape .*, but has shape"):
        move(torch.zeros(shape), plan)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_several_entries_of_a_datapoint_gather_from_one_row(batch):
    """As if the data had been copied, with all derivatives, and deterministic."""
    m, n = 2, 5
    plan = dispatch_plan(random_assignment(*batch, m * n, num_experts=3, capacity=4), 3, 4)
    x = torch.randn(*batch, n, 3, dtype=torch.float64, requires_grad=True)
    copies = torch.cat([x] * m, -2)
    slots, expected = dispatch(x, plan, num_selected=m), dispatch(copies, plan)
    assert torch.equal(slots, expected)
    weight = torch.randn_like(slots)
    gradients = [torch.autograd.grad((out * weight).sum(), x)[0] for out in (slots, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-14)
    if batch != (2, 3):
        assert torch.autograd.gradcheck(lambda x: dispatch(x, plan, num_selected=m).square(), x, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(lambda x: dispatch(x, plan, num_selected=m).square(), x)
    with pytest.raises(ValueError, match=r"^x must have shape .*, but has shape"):
        dispatch(copies, plan, num_selected=m)


def test_vmap_and_provenance_with_several_entries():
    plan = dispatch_plan(random_assignment(10, num_experts=3, capacity=4), 3, 4)
    x = torch.randn(6, 5, 2)
    separate = torch.stack([dispatch(row, plan, num_selected=2) for row in x])
    assert torch.equal(torch.vmap(lambda x: dispatch(x, plan, num_selected=2))(x), separate)
    tracked = dispatch_plan(track_provenance(random_assignment(10, num_experts=3, capacity=4), frozenset({"z"})), 3, 4)
    assert get_provenance(dispatch(x[0], tracked, num_selected=2)) == {"z"}
