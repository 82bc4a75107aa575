"""Routers and draws under torch.func: solvers are constants there, and forward mode agrees with reverse."""

import pytest
import torch
from torch import Tensor

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.experts import BatchedExperts
from prob_moe.numerics import minimum_variance_marginals, solve_assignment
from prob_moe.rules import (
    BASELayer,
    DenseMixer,
    RoutingRule,
    SinkhornBASE,
    SparsityConstrainedTransport,
    Switch,
    TopGates,
)

ROUTERS = [
    BASELayer(),
    SinkhornBASE(),
    DenseMixer(),
    SparsityConstrainedTransport(regularization=3.0),
    Switch(),
    TopGates(),
]


def logits_of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("router", ROUTERS)
def test_modes_of_differentiation_agree(router: RoutingRule) -> None:
    torch.manual_seed(0)
    experts = BatchedExperts(2, 3, 4, 3, dtype=torch.float64)
    x, logits = torch.randn(6, 3, dtype=torch.float64), logits_of(6, 2)

    def loss(logits: Tensor) -> Tensor:
        routing = router(logits)
        return routing.output(experts, x).square().sum() + routing.loss.sum()

    leaf = logits.clone().requires_grad_()
    loss(leaf).backward()
    gradient = torch.func.grad(loss)(logits)
    torch.testing.assert_close(gradient, leaf.grad)
    assert gradient.abs().max() > 1e-6
    direction = torch.randn_like(logits)
    torch.testing.assert_close(torch.func.jvp(loss, (logits,), (direction,))[1], (gradient * direction).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(logits, direction))
        tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(tangent, (gradient * direction).sum())
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(logits)
    torch.testing.assert_close(torch.func.hessian(loss)(logits), hessian)


@pytest.mark.parametrize("distribution", [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding])
def test_draws_and_weights_are_constants(distribution: type[AssignmentDistribution]) -> None:
    logits = logits_of(4, 2)

    def surrogate(logits: Tensor) -> Tensor:
        torch.manual_seed(1)
        routing = distribution(logits, capacity=3)
        value = routing.sample()
        return (routing.importance_weights(value) * routing.router_log_prob(value)).sum()

    leaf = logits.clone().requires_grad_()
    surrogate(leaf).backward()
    torch.testing.assert_close(torch.func.grad(surrogate)(logits), leaf.grad)
    direction = torch.randn_like(logits)
    derivative = torch.func.jvp(surrogate, (logits,), (direction,))[1]
    torch.testing.assert_close(derivative, (leaf.grad * direction).sum())


def test_solvers_cannot_be_mapped() -> None:
    batch = logits_of(3, 4, 2)
    with pytest.raises(NotImplementedError, match=r"solve_assignment cannot be mapped by torch\.vmap; it takes"):
        torch.func.vmap(lambda logits: solve_assignment(logits, 2).assignment)(batch)
    with pytest.raises(NotImplementedError, match="minimum_variance_marginals cannot be mapped"):
        torch.func.vmap(lambda logits: minimum_variance_marginals(logits, 2).log_marginals)(batch)
