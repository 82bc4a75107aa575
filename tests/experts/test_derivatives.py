"""The layer under torch.func: second derivatives in every order of modes, forward mode, and maps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from prob_moe.experts import BatchedExperts

ASSIGNMENT = torch.tensor([0, 1, 2, 0, 1, -1])


def setting(hidden: int | None, capacity: int | None) -> tuple[Tensor, dict[str, Tensor], Callable[..., Tensor]]:
    torch.manual_seed(0)
    layer = BatchedExperts(3, 3, hidden, 2, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def loss(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        out = torch.func.functional_call(layer, parameters, (x, ASSIGNMENT), dict(capacity=capacity))
        return out.square().sum()

    return torch.randn(6, 3, dtype=torch.float64), parameters, loss


@pytest.mark.parametrize("capacity", [2, None])
@pytest.mark.parametrize("hidden", [None, 5])
def test_second_derivatives_in_every_order(hidden: int | None, capacity: int | None) -> None:
    x, parameters, loss = setting(hidden, capacity)
    jacfwd, jacrev = torch.func.jacfwd, torch.func.jacrev
    for argnum in (0, 1):
        expected = torch.func.jacrev(torch.func.jacrev(loss, argnum), argnum)(x, parameters)
        for outer, inner in ((jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)):
            torch.testing.assert_close(outer(inner(loss, argnum), argnum)(x, parameters), expected)
    # The reference itself, by finite differences.
    gradient = torch.func.grad(loss)
    # Along all datapoints at once: the hidden units of a single one may all be off.
    step = 1e-5 * torch.ones_like(x)
    finite = (gradient(x + step, parameters) - gradient(x - step, parameters)) / 2e-5
    along = jacrev(jacrev(loss))(x, parameters).sum((-2, -1))
    torch.testing.assert_close(along, finite, atol=1e-6, rtol=0)
    assert finite.abs().max() > 1e-4


@pytest.mark.parametrize("capacity", [2, None])
@pytest.mark.parametrize("hidden", [None, 5])
def test_forward_mode_and_maps(hidden: int | None, capacity: int | None) -> None:
    x, parameters, loss = setting(hidden, capacity)
    along = {name: torch.randn_like(value) for name, value in parameters.items()}
    gradient = torch.func.grad(loss, 1)(x, parameters)
    expected = torch.stack([(gradient[name] * along[name]).sum() for name in along]).sum()

    def derivative(x: Tensor) -> Tensor:
        return torch.func.jvp(lambda p: loss(x, p), (parameters,), (along,))[1]

    torch.testing.assert_close(derivative(x), expected)
    several = torch.stack([x, 2 * x, -x])
    torch.testing.assert_close(
        torch.func.vmap(derivative)(several), torch.stack([derivative(each) for each in several])
    )
