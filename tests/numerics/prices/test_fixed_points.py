"""Second derivatives and forward mode of the likelihood, against finite differences of its gradient."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor

from prob_moe.distributions import GumbelMatching
from prob_moe.numerics import matching_log_prob

# Sizes (n, k, c) by what the integral is: none, quadrature in one and two dimensions, and points of another law.
CLOSED, ONE, TWO, SAMPLED = (2, 3, 2), (4, 2, 2), (3, 3, 1), (5, 5, 1)


def problem(n: int, k: int, c: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    logits = torch.randn(n, k, dtype=torch.float64, generator=torch.Generator().manual_seed(n + 10 * k))
    value = GumbelMatching(logits, capacity=c).mode
    return logits, lambda phi: GumbelMatching(phi, capacity=c).log_prob(value)


def finite_hessian(function: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-4) -> Tensor:
    rows = []
    for unit in torch.eye(point.numel(), dtype=point.dtype).reshape(-1, *point.shape):
        ends = [torch.func.grad(function)(point + sign * step * unit) for sign in (1, -1)]
        rows.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(rows).reshape(point.shape * 2)


# The points of an integral that is sampled move with the logits; derivatives hold them fixed.
@pytest.mark.parametrize(("size", "tolerance"), [(CLOSED, 1e-6), (ONE, 1e-6), (TWO, 1e-5), (SAMPLED, 0.02)])
def test_the_hessian_is_a_finite_difference_of_the_gradient(size: tuple[int, int, int], tolerance: float) -> None:
    logits, log_prob = problem(*size)
    expected = finite_hessian(log_prob, logits)
    assert expected.abs().max() > 0.01
    for hessian in (
        torch.autograd.functional.hessian(log_prob, logits),
        torch.func.hessian(log_prob)(logits),
        torch.func.jacrev(torch.func.jacfwd(log_prob))(logits),
    ):
        torch.testing.assert_close(hessian, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [ONE, TWO, SAMPLED])
def test_forward_mode_is_the_gradient(size: tuple[int, int, int]) -> None:
    logits, log_prob = problem(*size)
    direction = torch.randn_like(logits)
    expected = (torch.func.grad(log_prob)(logits) * direction).sum()
    torch.testing.assert_close(torch.func.jvp(log_prob, (logits,), (direction,))[1], expected)


def test_batches_masks_and_upstream_gradients() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator)
    logits[0, 0, 1] = -torch.inf
    value = torch.tensor([[0, 0, 1, 2], [0, 1, 2, -1]])

    def function(phi: Tensor) -> Tensor:
        filled = torch.where(logits == -torch.inf, logits, phi)
        return matching_log_prob(filled, value, 2)[0].exp()

    point = logits.clamp(min=-5.0).requires_grad_()
    assert torch.autograd.gradcheck(function, point, atol=1e-6)
    assert torch.autograd.gradgradcheck(function, point, atol=1e-4)


def test_what_has_no_derivative_says_so() -> None:
    logits, log_prob = problem(*ONE)
    hessian = torch.autograd.functional.hessian(log_prob, logits.requires_grad_(), create_graph=True)
    with pytest.raises(NotImplementedError, match="first and second order, no third"):
        hessian.sum().backward()
    with pytest.raises(NotImplementedError, match=r"forward mode inside forward mode; torch\.func\.hessian works"):
        torch.func.jacfwd(torch.func.jacfwd(log_prob))(logits)
    with pytest.raises(NotImplementedError, match="vectorize=False"):
        torch.autograd.functional.hessian(log_prob, logits, vectorize=True)


def test_a_laplace_approximation_is_not_the_prior() -> None:
    logits, log_prob = problem(*ONE)
    value = GumbelMatching(logits, capacity=2).mode

    def model() -> None:
        phi = pyro.sample("logits", dist.Normal(torch.zeros(4, 2, dtype=torch.float64), 1.0).to_event(2))
        pyro.sample("z", GumbelMatching(phi, capacity=2), obs=value)

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoLaplaceApproximation(model)
    Trace_ELBO().loss(model, guide)
    with torch.no_grad():
        guide.loc.copy_(logits.flatten())
    precision = guide.laplace_approximation().get_posterior().precision_matrix
    expected = torch.eye(8, dtype=torch.float64) - finite_hessian(log_prob, logits).reshape(8, 8)
    torch.testing.assert_close(precision.detach(), expected, atol=1e-5, rtol=0)
