"""Lower precisions, autocast and compilation change nothing but rounding."""

import pytest
import torch

from prob_moe.experts import BatchedExperts, sorting
from tests.compiler import needs_compiler
from tests.experts.oracle import loop, random_assignment

SIZES = (4, 16, 32, 16)


def _case(dtype):
    layer = BatchedExperts(*SIZES, dtype=dtype)
    x = torch.randn(40, 16, dtype=dtype, requires_grad=True)
    return layer, x, random_assignment(40, num_experts=4, capacity=10)


def _assert_rounding_only(layer, x, assignment, output, eps):
    """Against the loop in float64, errors of value and gradients in units of the tensor's norm times eps."""
    exact_layer = BatchedExperts(*SIZES, dtype=torch.float64)
    exact_layer.load_state_dict(layer.state_dict())
    exact_x = x.detach().double().requires_grad_()
    exact = loop(exact_layer, exact_x, assignment)
    pairs = [(output, exact)]
    weights = torch.randn_like(exact)
    pairs += zip(
        torch.autograd.grad((output * weights.to(output.dtype)).sum(), [x, *layer.parameters()]),
        torch.autograd.grad((exact * weights).sum(), [exact_x, *exact_layer.parameters()]),
    )
    for value, truth in pairs:
        # Roundings of the weights, of both layers' results and of the sums add up to a few units.
        assert (value.double() - truth).norm() <= 8 * eps * truth.norm()


@pytest.mark.parametrize("capacity", [10, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtype(dtype, capacity, monkeypatch):
    monkeypatch.setattr(sorting, "MULTIPLICATIONS_PER_EXPERT", -1)
    layer, x, assignment = _case(dtype)
    output = layer(x, assignment, capacity=capacity)
    assert output.dtype == dtype
    _assert_rounding_only(layer, x, assignment, output, torch.finfo(dtype).eps)


@pytest.mark.parametrize("capacity", [10, None])
def test_autocast(capacity, monkeypatch):
    monkeypatch.setattr(sorting, "MULTIPLICATIONS_PER_EXPERT", -1)
    layer, x, assignment = _case(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x, assignment, capacity=capacity)
    assert output.dtype == torch.bfloat16
    _assert_rounding_only(layer, x, assignment, output, torch.finfo(torch.bfloat16).eps)


# The compiler itself uses what torch has deprecated: torch.jit, instances of an autograd.Function.
@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_to_one_graph():
    layer, x, assignment = _case(torch.float64)
    mask = torch.rand(40) < 0.9

    def outputs(layer):
        y = layer(x, assignment, capacity=10, mask=mask)
        return [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    for compiled, eager in zip(outputs(torch.compile(layer, fullgraph=True)), outputs(layer)):
        torch.testing.assert_close(compiled, eager, rtol=1e-10, atol=1e-12)
