"""Predictions: routing summed out, nobody dropped, and no invented values in draws."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor, nn

from models.language import LanguageModel
from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.distributions.support import router_choices
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts

N, K = 7, 4
LIKELIHOODS: dict[str, Callable] = {
    "normal": lambda out: dist.Normal(out[..., 0], 0.5),
    "vectors": lambda out: dist.Normal(out, 0.5).to_event(1),
    "classes": lambda out: dist.Categorical(logits=out),
    "counts": lambda out: dist.Poisson(out[..., 0].exp()),
    "one-hot": lambda out: dist.OneHotCategorical(logits=out),
}


def mixture_of(kind: str = "normal", assignment: type[AssignmentDistribution] = CapacitySkip) -> MixtureOfExperts:
    torch.manual_seed(4)
    experts = BatchedExperts(K, 2, None, 3)
    return MixtureOfExperts(
        nn.Linear(2, K), experts, LIKELIHOODS[kind], assignment=assignment, capacity_factor=1.0
    ).double()


def inputs(*batch: int) -> Tensor:
    return torch.randn(*batch, N, 2, dtype=torch.float64)


@pytest.mark.parametrize("num_selected", [None, 1, 3])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_against_a_loop_over_experts(kind: str, num_selected: int | None) -> None:
    mixture, x = mixture_of(kind), inputs(2)
    prediction = mixture.predict(x, num_selected=num_selected)
    assert prediction.batch_shape == (2, N)
    y = prediction.sample((5,))
    p, out = mixture.router(x).softmax(-1), mixture.experts.dense(x)
    kept = p.topk(num_selected or K, -1)
    total, mean = torch.zeros(5, 2, N, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for place in range(num_selected or K):
        share = kept.values[..., place] / kept.values.sum(-1)
        expert = kept.indices[..., place]
        component = mixture.likelihood(out.gather(-2, expert[..., None, None].expand(2, N, 1, 3)).squeeze(-2))
        total = total + share * component.log_prob(y).exp()
        values = component.probs if kind == "classes" else component.mean
        mean = mean + share.reshape(share.shape + (1,) * (values.dim() - 2)) * values
    torch.testing.assert_close(prediction.log_prob(y), total.log())
    torch.testing.assert_close(prediction.probs if kind == "classes" else prediction.mean, mean)


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_alone_as_in_a_batch_and_as_the_marginal(kind: str) -> None:
    mixture, x = mixture_of(kind), inputs()
    y = mixture.predict(x).sample()
    together = mixture.predict(x).log_prob(y)
    torch.testing.assert_close(together, mixture.marginal_log_likelihood(x, y))
    for num_selected in (None, 2):
        together = mixture.predict(x, num_selected=num_selected).log_prob(y)
        for i in range(N):
            alone = mixture.predict(x[i : i + 1], num_selected=num_selected).log_prob(y[i : i + 1])
            torch.testing.assert_close(alone, together[i : i + 1])
    mask = torch.arange(N) < 5
    torch.testing.assert_close(mixture.predict(x, mask=mask).log_prob(y)[:5], mixture.predict(x).log_prob(y)[:5])


def test_forbidden_experts_have_no_share() -> None:
    mixture, x = mixture_of(), inputs()
    with torch.no_grad():
        mixture.router.bias[1:] = -torch.inf
    prediction = mixture.predict(x)
    torch.testing.assert_close(prediction.mean, mixture.experts.dense(x)[:, 0, 0])
    prediction.log_prob(torch.zeros(N, dtype=torch.float64)).sum().backward()
    assert mixture.router.weight.grad.isfinite().all()


def test_responsibilities() -> None:
    mixture, x = mixture_of(), inputs(3)
    y = torch.randn(3, N, dtype=torch.float64)
    prior = mixture.router(x).softmax(-1)
    torch.testing.assert_close(mixture.responsibilities(x), prior)
    joint = prior * mixture.log_likelihoods(x, y).exp()
    torch.testing.assert_close(mixture.responsibilities(x, y), joint / joint.sum(-1, keepdim=True))


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    ("assignment", "capacity_factor"),
    [(IndependentRouting, 1.0), (CapacitySkip, 1.0), (GumbelMatching, 1.0), (DependentRounding, 0.5)],
)
def test_draws_come_from_the_drawn_expert(
    assignment: type[AssignmentDistribution], capacity_factor: float, parallel: bool
) -> None:
    """All datapoints want one expert; where a procedure drops, most are dropped, and still get that expert's output."""
    mixture, x = mixture_of(assignment=assignment), inputs()
    mixture.likelihood = lambda out: dist.Normal(out[..., 0], 1e-9)
    mixture.capacity_factor = capacity_factor
    with torch.no_grad():
        mixture.router.bias[2] = 9.0
    samples = Predictive(mixture, num_samples=3, parallel=parallel)(x)
    z = samples["assignment"].reshape(3, N)
    assert (z < 0).any() == (assignment in (CapacitySkip, DependentRounding))
    drawn = mixture.experts.dense(x)[torch.arange(N), router_choices(z), 0]
    torch.testing.assert_close(samples["y"], drawn, rtol=0, atol=1e-7)


def test_draws_of_a_batch_with_padding() -> None:
    mixture, x = mixture_of(), inputs(3)
    mixture.likelihood = lambda out: dist.Normal(out[..., 0], 1e-9)
    mask = torch.arange(N) < torch.tensor([[3], [7], [5]])
    with pyro.poutine.trace() as tracer, pyro.plate("batches", 3, dim=-2):
        y = mixture(x, mask=mask)
    z = router_choices(tracer.trace.nodes["assignment"]["value"].squeeze(-2))
    drawn = mixture.experts.dense(x)[..., 0].gather(-1, z.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(y[mask], drawn[mask], rtol=0, atol=1e-7)


def test_a_language_model_draws_dropped_bytes_from_their_expert() -> None:
    torch.manual_seed(0)
    model = LanguageModel(CapacitySkip, num_features=8, hidden_features=8, num_blocks=1, capacity_factor=0.5)
    x = torch.randint(256, (2, 12))
    with pyro.poutine.trace() as tracer:
        model(x)
    sites = tracer.trace.nodes
    z = sites["assignment_1"]["value"].squeeze(-2)
    assert (z < 0).any()
    everybody = pyro.condition(LanguageModel.forward, {"assignment_1": router_choices(z).unsqueeze(-2)})
    model.feed_forward[0].assignment = IndependentRouting
    with pyro.poutine.trace() as tracer:
        everybody(model, x)
    torch.testing.assert_close(sites["y"]["fn"].logits, tracer.trace.nodes["y"]["fn"].logits)
