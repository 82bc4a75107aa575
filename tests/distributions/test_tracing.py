"""``torch.jit.trace`` would repeat one draw for ever: whatever draws or leaves torch refuses it, the rest goes on."""

import warnings
from collections.abc import Callable, Iterator

import pyro
import pytest
import torch
from pyro.infer import JitTrace_ELBO
from torch import Tensor

from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.numerics import (
    dependent_rounding,
    matching_log_prob,
    minimum_variance_marginals,
    solve_assignment,
    sparse_transport,
)
from prob_moe.rules import BASELayer, GumbelSoftmax, SinkhornBASE, SparseMixer, Switch

LOGITS = torch.zeros(4, 2)


@pytest.fixture(autouse=True)
def without_tracer_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trace(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return torch.jit.trace(function, (LOGITS,), check_trace=False)


class Stranger(AssignmentDistribution):
    """Knows nothing of traces."""

    limited = False

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return torch.randint(0, 2, self.shape(sample_shape))


@pytest.mark.parametrize(
    "distribution", [IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding, Stranger]
)
def test_a_draw_is_refused(distribution: type[AssignmentDistribution]) -> None:
    with pytest.raises(NotImplementedError, match=f"a draw of {distribution.__name__} cannot be traced: .* for ever"):
        trace(lambda logits: distribution(logits, capacity=2).sample())


def test_the_compiling_elbo_of_pyro_is_refused() -> None:
    def program() -> None:
        logits = pyro.param("logits", torch.zeros(4, 2))
        pyro.sample("z", IndependentRouting(logits))

    pyro.clear_param_store()
    with pytest.raises(NotImplementedError, match="a draw of IndependentRouting cannot be traced"):
        JitTrace_ELBO(ignore_jit_warnings=True).loss_and_grads(program, program)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("solve_assignment", lambda scores: solve_assignment(scores, 2).assignment),
        ("minimum_variance_marginals", lambda logits: minimum_variance_marginals(logits, 2).log_marginals),
        ("dependent_rounding", lambda logits: dependent_rounding(logits.softmax(-1), capacity=2)),
        ("matching_log_prob", lambda logits: matching_log_prob(logits, torch.tensor([0, 0, 1, 1]), 2)[0]),
        ("minimize_lbfgs", lambda similarity: sparse_transport(similarity, 1).plan),
        ("solve_assignment", lambda logits: BASELayer()(logits).assignment),
        ("sinkhorn_log_plan", lambda logits: SinkhornBASE()(logits).assignment),
        ("a draw of random numbers", lambda logits: SparseMixer()(logits).assignment),
        ("a draw of random numbers", lambda logits: GumbelSoftmax()(logits).loss),
    ],
)
def test_solvers_and_routers_that_draw_are_refused(name: str, function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotImplementedError, match=f"{name} cannot be traced"):
        trace(function)


def test_what_is_a_function_of_the_logits_can_be_traced() -> None:
    value = torch.tensor([0, 0, 1, 1])
    logits = torch.randn(4, 2)
    for function in (lambda x: CapacitySkip(x, capacity=2).log_prob(value), lambda x: Switch()(x).gate):
        torch.testing.assert_close(trace(function)(logits), function(logits))
