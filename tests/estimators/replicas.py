"""One small routing problem, replicated in a plate, so that one backward pass gives many independent gradients."""

from collections.abc import Callable
from functools import partial

import pyro
import torch
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution, SelectedMixture
from prob_moe.distributions.sets import entries_of
from prob_moe.distributions.support import router_choices
from prob_moe.estimators import Baseline
from prob_moe.estimators.sites import per_datapoint
from prob_moe.testing import GradientReport, gradient_report
from tests.estimators.table import Table

Assignment = Callable[..., AssignmentDistribution]


# As numbers, not by a seed: how far apart two objectives are, and how heavy the tails of the weights, depends on them.
LOGITS = torch.tensor(
    [
        [-0.7, -0.5, 1.2],
        [0.7, -0.4, 1.1],
        [0.7, -1.3, 0.9],
        [-0.5, -2.2, 0.3],
        [1.1, 0.3, 1.4],
        [0.4, 0.8, 1.9],
        [-0.2, 0.9, 0.1],
        [0.5, -0.1, -0.6],
    ],
    dtype=torch.float64,
)
LOG_LIKELIHOODS = torch.tensor(
    [
        [0.6, -3.0, -7.1],
        [-2.7, -8.3, -3.2],
        [-5.9, -4.1, -9.5],
        [-2.4, -4.0, -6.3],
        [-1.8, -4.6, -0.2],
        [-2.7, -1.2, -1.1],
        [-5.2, -2.6, -3.3],
        [-1.5, -4.4, -6.0],
    ],
    dtype=torch.float64,
)


def problem(num_datapoints: int, num_experts: int) -> tuple[Tensor, Tensor]:
    """Router logits and log-likelihoods f, (n, k) float64, unbalanced and far from zero; n <= 8 and k <= 3."""
    return LOGITS[:num_datapoints, :num_experts].clone(), LOG_LIKELIHOODS[:num_datapoints, :num_experts].clone()


def model(logits: Tensor, f: Tensor, assignment: Assignment, baseline: Baseline | dict | None = None) -> None:
    """logits (*replicas, n, k); the log-likelihood of datapoint i at expert j is f[i, j]. A dropped one has none."""
    logits = pyro.param("logits", logits)
    replicas, n = logits.shape[:-2], logits.shape[-2]
    infer = {} if baseline is None else {"baseline": baseline}
    with pyro.plate_stack("replicas", replicas, rightmost_dim=-2):
        law = assignment(logits.unsqueeze(-3) if replicas else logits)
        z = pyro.sample("z", law, infer=infer)
        if law.num_selected is not None:
            observe_several(f, law, z)
            return
        routed = per_datapoint(z, -1)
        with pyro.plate("data", n, dim=-1), pyro.poutine.mask(mask=routed >= 0):
            choices = router_choices(routed)
            f_chosen = f.expand((*choices.shape, f.shape[-1])).gather(-1, choices.unsqueeze(-1)).squeeze(-1)
            pyro.factor("f", f_chosen)


def observe_several(f: Tensor, law: AssignmentDistribution, z: Tensor) -> None:
    log_weights, log_p, kappa = law.log_importance_weights(z), law.router_log_prob(z), law.keep_probability(z)
    choices = router_choices(z)
    if z.dim() > 2:
        log_weights, log_p, choices = (value.squeeze(-3) for value in (log_weights, log_p, choices))
        kappa = kappa.squeeze(-2)
    table = Table(entries_of(f.expand(*choices.shape[:-2], *f.shape), choices, law.num_selected))
    with pyro.plate("data", f.shape[0], dim=-1):
        likelihood = SelectedMixture(log_weights, log_p, table, keep_probability=kappa)
        pyro.sample("y", likelihood, obs=torch.zeros(f.shape[0], dtype=f.dtype))


def no_guide(*args: object, **kwargs: object) -> None:
    """The guide of a model whose only latent sites are assignments."""


def compare(
    elbo: pyro.infer.ELBO,
    make_pair: Callable,
    logits: Tensor,
    f: Tensor,
    assignment: Assignment,
    baseline: Baseline | dict | None = None,
    *,
    exact: Tensor,
    replicas: int,
    calls: int = 1,
) -> GradientReport:
    """The report on ``calls`` calls, each of which gives one gradient a replica."""
    pyro.clear_param_store()
    run_model, guide = make_pair(model)
    many = logits.expand(replicas, *logits.shape).clone()
    return gradient_report(
        *(run_model, guide, elbo, many, f, assignment, baseline),
        exact={"logits": exact},
        num_samples=calls * replicas,
        replicas=replicas,
    )


def standard_errors_off(samples: Tensor, exact: Tensor) -> float:
    """The largest distance of a coordinate of the mean from its exact value, in standard errors."""
    error = (samples.mean(0) - exact).abs()
    deviation = samples.std(0) / len(samples) ** 0.5
    return float((error / deviation.clamp(min=1e-12)).max())


def router_pair(run_model: Callable) -> tuple[Callable, Callable]:
    return run_model, no_guide


def exact_router_gradient(logits: Tensor, f: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad((leaf.softmax(-1) * f).sum(), leaf)[0]


def exact_balanced_gradient(logits: Tensor, f: Tensor, assignment: Assignment) -> Tensor:
    """By enumeration of all assignments."""
    leaf = logits.clone().requires_grad_()
    procedure = assignment(leaf)
    values = procedure.enumerate_support()
    choices = router_choices(values)
    totals = (f.expand(len(values), *f.shape).gather(-1, choices.unsqueeze(-1)).squeeze(-1) * (values >= 0)).sum(-1)
    return torch.autograd.grad((procedure.log_prob(values).exp() * totals).sum(), leaf)[0]


def with_capacity(distribution: type[AssignmentDistribution], capacity: int) -> Assignment:
    return partial(distribution, capacity=capacity)
