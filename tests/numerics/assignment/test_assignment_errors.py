"""Wrong input to `solve_assignment` is named before any work is done."""

import pytest
import torch

from prob_moe.numerics import exchange_costs, shadow_prices, shortest_distances, solve_assignment


@pytest.mark.parametrize("capacity", [0, -1, 2.0, True, "3", None])
def test_capacity_must_be_a_positive_int(capacity):
    with pytest.raises(ValueError, match="capacity must be a positive int"):
        solve_assignment(torch.zeros(4, 2), capacity)


def test_too_small_capacity_names_shape_and_slots():
    with pytest.raises(ValueError, match=r"capacity=2 is too small: scores of shape \(3, 7, 3\).* 6 slots"):
        solve_assignment(torch.zeros(3, 7, 3), 2)


def test_too_many_unmasked_rows_name_the_batch_element():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    with pytest.raises(ValueError, match=r"too small.*batch element \(1,\)"):
        solve_assignment(torch.zeros(2, 3, 2), 1, mask=mask)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_nan_and_infinity_are_found_wherever_they_are(bad, dtype):
    for position in range(21):
        scores = torch.zeros(2, 3, 7, 3, dtype=dtype)
        scores[1, 2].view(-1)[position] = bad
        with pytest.raises(ValueError, match=r"NaN or \+inf in batch element \(1, 2\)"):
            solve_assignment(scores, 3)


def test_infeasible_mask_names_the_batch_element():
    scores = torch.zeros(3, 4, 2)
    scores[2, :3, 1] = -torch.inf  # three datapoints share the two slots of expert 0
    with pytest.raises(ValueError, match=r"-inf for too many pairs in batch element \(2,\)"):
        solve_assignment(scores, 2)
    scores[2] = 0.0
    scores[1, 3] = -torch.inf  # a datapoint without any expert
    with pytest.raises(ValueError, match=r"batch element \(1,\)"):
        solve_assignment(scores, 4)


@pytest.mark.parametrize("scores", [torch.zeros(4, 2, dtype=torch.long), torch.zeros(4, 2) > 0, [[0.0, 1.0]]])
def test_scores_must_be_a_floating_point_tensor(scores):
    with pytest.raises(ValueError, match="scores must be a floating-point tensor"):
        solve_assignment(scores, 2)


@pytest.mark.parametrize("shape", [(), (4,), (4, 0)])
def test_scores_must_have_two_dimensions(shape):
    with pytest.raises(ValueError, match="scores must have shape"):
        solve_assignment(torch.zeros(shape), 2)


@pytest.mark.parametrize("mask", [torch.ones(5, dtype=torch.bool), torch.ones(4), torch.ones(2, 4, dtype=torch.bool)])
def test_mask_must_be_bool_and_fit(mask):
    with pytest.raises(ValueError, match="mask must"):
        solve_assignment(torch.zeros(4, 2), 2, mask=mask)


def test_exchange_functions_name_shapes():
    with pytest.raises(ValueError, match=r"assignment must have the shape .*\(4,\).*\(3,\)"):
        exchange_costs(torch.zeros(4, 2), torch.zeros(3, dtype=torch.long), 2)
    with pytest.raises(ValueError, match="costs must have shape"):
        shortest_distances(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"loads must have the shape .*\(3,\)"):
        shadow_prices(torch.zeros(3, 3), torch.zeros(2, dtype=torch.long), 2)
