"""
The table of clauses: every estimator with every procedure and every baseline, against the exact gradient of the
objective that it claims, and a biased twin of each that fails the same check.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

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
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.estimators.surrogate_elbo import SurrogateELBO
from prob_moe.testing import GradientReport, exact_mixture_bound
from tests.estimators.named_baselines import NAMES, NAMES_OF_GROUPS, make
from tests.estimators.replicas import (
    compare,
    exact_balanced_gradient,
    exact_router_gradient,
    problem,
    router_pair,
    with_capacity,
)

Procedure = type[AssignmentDistribution]


def exact_mixture_gradient(logits: Tensor, f: Tensor, law: Callable) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(exact_mixture_bound(law(leaf), f), leaf)[0]


@dataclass(frozen=True)
class Claim:
    """An estimator, and the gradient that it claims to have in expectation."""

    elbo: type[SurrogateELBO]
    exact: Callable[[Tensor, Tensor, Callable], Tensor]
    procedures: tuple[Procedure, ...]
    #: n, k, capacity: tight, slack, and one datapoint or one per expert
    sizes: tuple[tuple[int, int, int], ...]
    num_selected: int | None = None
    baselines: tuple[str, ...] = ("none",)


CLAIMS = {
    "router": Claim(
        TraceRouting_ELBO,
        lambda logits, f, law: exact_router_gradient(logits, f),
        (IndependentRouting, CapacitySkip, GumbelMatching, DependentRounding),
        sizes=((6, 3, 2), (6, 3, 3), (1, 2, 1)),
        baselines=NAMES,
    ),
    "router, sets": Claim(
        TraceRouting_ELBO,
        lambda logits, f, law: exact_router_gradient(logits, f),
        (IndependentRouting, CapacitySkip, DependentRounding),
        sizes=((6, 3, 4), (6, 3, 3), (3, 3, 1)),
        num_selected=2,
    ),
    # Dependent rounding has no law, so no score.
    "balanced": Claim(
        TraceBalanced_ELBO,
        exact_balanced_gradient,
        (IndependentRouting, CapacitySkip, GumbelMatching),
        sizes=((4, 3, 2), (4, 2, 2), (3, 3, 1)),
        baselines=NAMES + NAMES_OF_GROUPS,
    ),
    # Nor can its sets be enumerated: tests/estimators/test_mixture_bound.py has a held draw of it.
    "mixture bound": Claim(
        TraceMixture_ELBO,
        exact_mixture_gradient,
        (IndependentRouting, CapacitySkip),
        sizes=((4, 3, 3), (4, 3, 2), (3, 3, 1)),
        num_selected=2,
    ),
}


def table() -> Iterator:
    """Every baseline at the first size, and none at the others; particles one after the other and side by side."""
    for name, claim in CLAIMS.items():
        for procedure in claim.procedures:
            for baseline in claim.baselines:
                for size in claim.sizes if baseline == "none" else claim.sizes[:1]:
                    for vectorized in (False, True) if make(baseline, 1)[1] > 1 else (False,):
                        words = (name, procedure.__name__, baseline, "x".join(map(str, size)))
                        label = "-".join((*words, *(["vectorised"] if vectorized else [])))
                        yield pytest.param(claim, procedure, baseline, size, vectorized, id=label)


def report_of(
    claim: Claim,
    procedure: Procedure,
    baseline: str,
    size: tuple[int, int, int],
    vectorized: bool = False,
    run: Procedure | None = None,
) -> GradientReport:
    """:param run: what runs instead of the procedure."""
    n, k, capacity = size
    logits, f = problem(n, k)
    sets = {"num_selected": claim.num_selected}
    law, running = (partial(with_capacity(made, capacity), **sets) for made in (procedure, run or procedure))
    made, particles = make(baseline, n)
    elbo = claim.elbo(num_particles=particles, vectorize_particles=vectorized, max_plate_nesting=2)
    exact = claim.exact(logits, f, law)
    # The second call has an average of earlier steps to subtract.
    return compare(elbo, router_pair, logits, f, running, made, exact=exact, replicas=2000, calls=2)


@pytest.mark.filterwarnings("ignore:.*unbiased but noisier")
@pytest.mark.parametrize(("claim", "procedure", "baseline", "size", "vectorized"), list(table()))
def test_unbiased(
    claim: Claim, procedure: Procedure, baseline: str, size: tuple[int, int, int], vectorized: bool
) -> None:
    report = report_of(claim, procedure, baseline, size, vectorized)
    assert report.unbiased, report


def without_weights(procedure: Procedure) -> Procedure:
    """The procedure, but every processed expert, and every pair of them, weighs the same."""

    class Unweighted(procedure):  # type: ignore[misc,valid-type]
        def log_importance_weights(self, value: Tensor) -> Tensor:
            return torch.where(value < 0, -torch.inf, 0.0).to(self.logits)

        def pair_weights(self, value: Tensor) -> Tensor:
            return (super().pair_weights(value) > 0).to(self.logits)

    return Unweighted


@pytest.mark.filterwarnings("ignore:.*unbiased but noisier")
@pytest.mark.parametrize(("name", "procedure"), [(name, law) for name, c in CLAIMS.items() for law in c.procedures])
def test_a_biased_twin_fails_the_same_check(name: str, procedure: Procedure) -> None:
    """A baseline that knows its own particle; for sets, which have none, a procedure that knows no weights."""
    claim = CLAIMS[name]
    if claim.num_selected is None:
        report = report_of(claim, procedure, "biased", claim.sizes[0])
    else:
        report = report_of(claim, procedure, "none", claim.sizes[0], run=without_weights(procedure))
    assert report.worst > 8


@pytest.mark.parametrize("elbo", [TraceRouting_ELBO, TraceMixture_ELBO])
@pytest.mark.parametrize("baseline", [name for name in NAMES if name != "none"])
def test_sets_take_no_baseline(elbo: type[SurrogateELBO], baseline: str) -> None:
    logits, f = problem(4, 3)
    law = partial(IndependentRouting, num_selected=2)
    with pytest.raises(ValueError, match="'z' selects several experts, whose estimators need no baseline"):
        compare(elbo(), router_pair, logits, f, law, make(baseline, 4)[0], exact=logits, replicas=100)
