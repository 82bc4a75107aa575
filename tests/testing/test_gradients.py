"""Reports on estimators: unbiased ones pass, biased ones fail, and the numbers are what they say."""

import builtins
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceGraph_ELBO
from torch import Tensor, nn

from prob_moe.distributions import AssignmentDistribution, CapacitySkip, GumbelMatching
from prob_moe.distributions.support import router_choices
from prob_moe.estimators import TraceRouting_ELBO
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.testing import GradientReport, exact_balanced_objective, exact_router_objective, gradient_report
from tests.estimators.replicas import exact_balanced_gradient, exact_router_gradient, no_guide, problem, with_capacity


class Router(nn.Module):
    """A model that is a plain module: its parameters are no Pyro parameters."""

    def __init__(self, n: int, k: int, procedure: type[AssignmentDistribution], capacity: int) -> None:
        super().__init__()
        logits, self.f = problem(n, k)
        self.logits = nn.Parameter(logits)
        self.procedure = procedure
        self.capacity = capacity

    def forward(self) -> None:
        z = pyro.sample("z", self.procedure(self.logits, capacity=self.capacity))
        with pyro.plate("data", len(z)), pyro.poutine.mask(mask=z >= 0):
            pyro.factor("f", self.f.gather(-1, router_choices(z).unsqueeze(-1)).squeeze(-1))


class BaselineOutsideTheWeight:
    """sum_i (w_i f_i - b_i) grad log p_i, where Pyro's own code would put the baseline."""

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        trace = pyro.poutine.trace(model).get_trace(*args, **kwargs)
        routing, z = trace.nodes["z"]["fn"], trace.nodes["z"]["value"]
        trace.compute_log_prob(site_filter=lambda name, site: name == "f")
        weighted = routing.importance_weights(z) * trace.nodes["f"]["log_prob"]
        loss = -((weighted + 3.0) * routing.router_log_prob(z)).sum()
        loss.backward()
        return loss.item()


def router_report(model: Router, elbo: TraceRouting_ELBO, num_samples: int) -> GradientReport:
    return gradient_report(model, no_guide, elbo, exact=partial(exact_router_objective, model), num_samples=num_samples)


@pytest.mark.parametrize("procedure", [CapacitySkip, GumbelMatching])
def test_an_unbiased_estimator_passes(procedure: type) -> None:
    report = router_report(Router(4, 2, procedure, 2), TraceRouting_ELBO(), num_samples=600)
    assert report.unbiased, report
    assert report.verdict == "unbiased within 5 standard errors"


def test_without_weights_it_is_biased() -> None:
    report = router_report(Router(6, 3, CapacitySkip, 2), TraceRouting_ELBO(weighted=False), num_samples=4000)
    assert not report.unbiased, report
    assert report.verdict.startswith("biased: ")


def test_a_baseline_outside_the_weight_is_found() -> None:
    model = Router(6, 3, GumbelMatching, 2)
    exact = {"logits": exact_router_gradient(model.logits.detach(), model.f)}
    assert not gradient_report(model, no_guide, BaselineOutsideTheWeight(), exact=exact, num_samples=3000).unbiased


@pytest.mark.parametrize(("elbo", "num_samples"), [(Trace_ELBO, 1500), (TraceGraph_ELBO, 300)])
def test_pyros_own_elbos_on_a_plain_module(elbo: type, num_samples: int) -> None:
    """Trace_ELBO leaves modules without gradient unless a trace holds a parameter."""
    model = Router(3, 2, CapacitySkip, 2)
    guide = poutine.block(model, expose=["z"])
    report = gradient_report(
        model, guide, elbo(), exact=partial(exact_balanced_objective, model), parameters=model, num_samples=num_samples
    )
    assert report.unbiased, report
    assert report.total.variance > 0


def mixture_of(**options: Any) -> tuple[MixtureOfExperts, Tensor, Tensor]:
    x = torch.randn(4, 2, dtype=torch.float64)
    experts = BatchedExperts(2, 2, None, 1)
    mixture = MixtureOfExperts(
        nn.Linear(2, 2), experts, lambda out: dist.Normal(out.squeeze(-1), 0.7), capacity=2, **options
    )
    return mixture.double(), x, x.sum(-1).sin() + 1


@pytest.mark.parametrize("load_balancing", [0.0, 3.0])
def test_all_parameters_of_a_mixture(load_balancing: float) -> None:
    """The load-balancing loss on expected shares does not depend on the draw: the exact objective has it too."""
    mixture, x, y = mixture_of(load_balancing=load_balancing)
    report = gradient_report(
        *(mixture, no_guide, TraceRouting_ELBO(), x, y),
        exact=partial(exact_router_objective, mixture),
        num_samples=400,
    )
    assert [row.parameter for row in report.rows] == [name for name, _ in mixture.named_parameters()]
    assert report.unbiased, report


def test_pyro_parameters_with_a_constraint_and_a_guide() -> None:
    """Closed form: ELBO of x ~ N(m, 1), latent N(0, 1), guide N(a, s); s is unconstrained by its logarithm."""
    a, s = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)

    def model() -> None:
        latent = pyro.sample("latent", dist.Normal(torch.zeros_like(a), 1.0))
        pyro.sample("x", dist.Normal(latent, 1.0), obs=torch.ones_like(a))

    def guide() -> None:
        scale = pyro.param("scale", s, constraint=dist.constraints.positive)
        pyro.sample("latent", dist.Normal(pyro.param("location", a), scale))

    exact = {"location": 1 - 2 * a, "scale": 1 - 2 * s**2}
    report = gradient_report(model, guide, Trace_ELBO(), exact=exact, num_samples=2000)
    assert {row.parameter for row in report.rows} == set(exact)
    assert report.unbiased, report
    wrong = gradient_report(model, guide, Trace_ELBO(), exact=exact | {"scale": -2 * s**2}, num_samples=2000)
    assert {row.parameter: row.bias < 5 for row in wrong.rows} == {"location": True, "scale": False}


class Scripted:
    """Leaves given gradients of the loss, one after the other."""

    def __init__(self, leaf: Tensor, gradients: list[Tensor]) -> None:
        self.leaf = leaf
        self.gradients = iter(gradients)

    def loss_and_grads(self, model: Callable, guide: Callable, *args: Any, **kwargs: Any) -> float:
        self.leaf.grad = -next(self.gradients)
        return 0.0


def scripted_report(exact: Tensor, draws: list[Tensor]) -> GradientReport:
    leaf = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    return gradient_report(
        *(no_guide, no_guide, Scripted(leaf, draws)),
        exact={"leaf": exact},
        parameters={"leaf": leaf},
        num_samples=len(draws),
    )


def test_the_numbers_of_a_report() -> None:
    """Half of the draws (2, 0), half (0, 0); exact (0, 1)."""
    draws = [torch.tensor([2.0 * (i % 2), 0.0], dtype=torch.float64) for i in range(100)]
    total = scripted_report(torch.tensor([0.5, 0.0], dtype=torch.float64), draws).total
    variance = 100 / 99
    assert total.size == 2
    assert total.bias == pytest.approx(0.5 / math.sqrt(variance / 100))
    assert total.relative_bias == pytest.approx(1.0)
    assert total.variance == pytest.approx(variance)
    assert total.cosine_of_mean == pytest.approx(1.0)
    assert total.mean_cosine == pytest.approx(0.5)


def test_gradients_without_variance_or_direction() -> None:
    constant = [torch.tensor([1.0, 2.0], dtype=torch.float64)] * 100
    assert scripted_report(constant[0], constant).worst == 0
    assert scripted_report(constant[0] + 1e-3, constant).worst == math.inf
    zero = scripted_report(torch.zeros(2, dtype=torch.float64), constant).total
    assert math.isnan(zero.relative_bias)
    assert math.isnan(zero.mean_cosine)


def test_table_and_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    constant = [torch.tensor([1.0, 2.0], dtype=torch.float64)] * 100
    report = scripted_report(constant[0], constant)
    assert report.table().row_count == 2
    assert "leaf: 0.0 standard errors" in str(report)
    frame = report.frame
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.index) == ["leaf", "total"]
    assert frame.loc["total", "mean_cosine"] == pytest.approx(1.0)

    def without_pandas(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    real_import = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match="needs pandas: pip install"):
        _ = report.frame


def test_nothing_of_the_callers_is_changed() -> None:
    model = Router(3, 2, CapacitySkip, 2)
    model.logits.grad = torch.ones_like(model.logits)
    state, store = torch.random.get_rng_state(), set(pyro.get_param_store())
    gradient_report(model, no_guide, TraceRouting_ELBO(), exact=partial(exact_router_objective, model), num_samples=100)
    assert torch.equal(state, torch.random.get_rng_state())
    assert set(pyro.get_param_store()) == store
    assert torch.equal(model.logits.grad, torch.ones_like(model.logits))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_samples=10), "num_samples must be at least 100 .* got 10"),
        (dict(replicas=0), "replicas must be at least 1, got 0"),
        (dict(replicas=7), r"parameter 'logits' of shape \(3, 2\) must have replicas = 7"),
        (dict(parameters={}), "no parameters"),
        (dict(parameters={"a": torch.zeros(2)}), "parameter 'a' must be a leaf tensor that requires a gradient"),
        (dict(exact={"other": torch.zeros(3, 2)}), r"no gradient for parameter 'logits'; it has \['other'\]"),
        (dict(exact={"logits": torch.zeros(2, 3)}), r"of 'logits' has shape \(2, 3\) instead of \(3, 2\)"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    model = Router(3, 2, CapacitySkip, 2)
    arguments = {"exact": {"logits": torch.zeros(3, 2)}} | options
    with pytest.raises(ValueError, match=message):
        gradient_report(model, no_guide, TraceRouting_ELBO(), **arguments)


# Exact objectives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("procedure", [CapacitySkip, GumbelMatching])
def test_exact_router_objective_is_the_sum_over_experts(procedure: type) -> None:
    model = Router(5, 3, procedure, 2)
    objective = exact_router_objective(model)
    torch.testing.assert_close(objective, (model.logits.softmax(-1) * model.f).sum())
    expected = exact_router_gradient(model.logits.detach(), model.f)
    torch.testing.assert_close(torch.autograd.grad(objective, model.logits)[0], expected)


def test_exact_balanced_objective_is_the_sum_over_the_support() -> None:
    model = Router(4, 3, CapacitySkip, 2)
    gradient = torch.autograd.grad(exact_balanced_objective(model), model.logits)[0]
    expected = exact_balanced_gradient(model.logits.detach(), model.f, with_capacity(CapacitySkip, 2))
    torch.testing.assert_close(gradient, expected)


def test_two_layers() -> None:
    """The second router sees the first expert: sums over both, and without capacity both objectives agree."""
    phi1, f = problem(3, 2)
    phi2 = torch.stack([phi1.flip(0), -phi1])
    shift = torch.tensor(0.7, dtype=torch.float64)

    def model() -> None:
        z1 = pyro.sample("z1", CapacitySkip(phi1, capacity=3))
        index = torch.arange(3)
        z2 = pyro.sample("z2", CapacitySkip(phi2[z1, index], capacity=3))
        pyro.factor("global", shift)
        with pyro.plate("data", 3):
            pyro.factor("f", f[index, z2] * (1 + z1))

    joint = phi1.softmax(-1).mT.unsqueeze(-1) * phi2.softmax(-1)
    expected = (joint * torch.stack([f, 2 * f])).sum() + shift
    torch.testing.assert_close(exact_router_objective(model), expected)
    torch.testing.assert_close(exact_balanced_objective(model), expected)


def latent_model() -> None:
    pyro.sample("latent", dist.Normal(0.0, 1.0))
    pyro.sample("z", CapacitySkip(torch.zeros(2, 2), capacity=1))


def batched_model() -> None:
    with pyro.plate("batch", 3, dim=-2):
        pyro.sample("z", CapacitySkip(torch.zeros(3, 1, 2, 2), capacity=1))


def test_what_has_no_exact_objective_is_refused() -> None:
    for objective in (exact_router_objective, exact_balanced_objective):
        with pytest.raises(ValueError, match=r"sites \['latent'\] are latent but no assignments"):
            objective(latent_model)
        with pytest.raises(ValueError, match="no latent assignment site"):
            objective(no_guide)
    with pytest.raises(ValueError, match=r"site 'z' has a batch of assignments, batch_shape \(3, 1\)"):
        exact_balanced_objective(batched_model)


@pytest.mark.parametrize(
    ("assignment", "capacity", "weighted", "withheld"),
    [
        (GumbelMatching, 1, True, True),
        (GumbelMatching, 2, True, False),
        (CapacitySkip, 1, True, False),
        # A twin without weights has a variance, and a bias that shows.
        (GumbelMatching, 1, False, False),
    ],
)
def test_the_verdict_is_withheld_where_weights_have_no_variance(
    assignment: Any, capacity: int, weighted: bool, withheld: bool
) -> None:
    start = torch.tensor([[0.5, 0.0, -0.5]] * 3, dtype=torch.float64)

    def program() -> None:
        z = pyro.sample("z", assignment(pyro.param("logits", start), capacity=capacity))
        with pyro.plate("data", 3):
            pyro.factor("f", torch.where(z < 0, ~z, z).double())

    elbo = TraceRouting_ELBO(weighted=weighted)
    report = gradient_report(
        program, lambda: None, elbo, exact=lambda: exact_router_objective(program), num_samples=100
    )
    assert report.verdict.startswith("withheld: ") == withheld
    assert (report.unbiased is None) == withheld
    if withheld:
        assert report.weight_pareto_k == 0.5
        assert "infinite variance" in str(report)


def test_without_a_law_the_estimated_tail_decides() -> None:
    class Unknown(GumbelMatching):
        weight_pareto_k = None

        def importance_weights(self, value: torch.Tensor) -> torch.Tensor:
            return torch.rand(value.shape, dtype=torch.float64) ** -1.5

    start = torch.zeros(4, 2, dtype=torch.float64)

    def program() -> None:
        z = pyro.sample("z", Unknown(pyro.param("logits", start), capacity=2))
        with pyro.plate("data", 4):
            pyro.factor("f", z.double())

    exact = {"logits": torch.zeros(4, 2, dtype=torch.float64)}
    report = gradient_report(program, lambda: None, TraceRouting_ELBO(), exact=exact, num_samples=200)
    assert report.weight_pareto_k is None
    assert report.unbiased is None
    assert "estimated Pareto k" in report.verdict
