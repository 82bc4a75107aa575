"""The density that NUTS moves on, against Pyro's enumeration, the mixture model, and its own symmetries."""

import math

import pyro
import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import Tensor

from models.piecewise import piecewise_data, piecewise_mixture
from models.piecewise_bayes import BayesianPiecewise, Parameters, Prior
from prob_moe.distributions import IndependentRouting


def problem(num_experts: int, prior: Prior | None = None, num_datapoints: int = 12) -> BayesianPiecewise:
    return BayesianPiecewise(piecewise_data((), num_datapoints), num_experts, prior)


@pytest.mark.parametrize("num_experts", [1, 2, 3])
@pytest.mark.parametrize("prior", [Prior(), Prior((0.5, 2.0), (3.0, 7.0), 0.3, 0.0)], ids=["noise free", "noise known"])
def test_log_joint_is_that_of_pyro_with_routing_enumerated(num_experts: int, prior: Prior) -> None:
    posterior = problem(num_experts, prior)
    _, potential, _, _ = initialize_model(posterior.model, max_plate_nesting=1)
    for _ in range(3):
        parameters = posterior.prior_draw()
        leaves = [
            {name: value.clone().requires_grad_() for name, value in parameters.items()},
            {name: value.clone().requires_grad_() for name, value in parameters.items()},
        ]
        ours, theirs = posterior.potential(leaves[0]), potential(leaves[1])
        torch.testing.assert_close(ours, theirs)
        gradients = [torch.autograd.grad(value, list(leaf.values())) for value, leaf in zip((ours, theirs), leaves)]
        for mine, other in zip(*gradients):
            torch.testing.assert_close(mine, other)


def test_log_likelihood_is_that_of_the_mixture_with_the_same_coefficients() -> None:
    posterior = problem(2, Prior(noise_median=0.25, noise_sigma=0.0))
    parameters = posterior.prior_draw()
    experts, router, _ = posterior.coefficients(parameters)
    mixture = piecewise_mixture(IndependentRouting, noise=0.25).double()
    with torch.no_grad():
        # From lines through (1/2, level) to lines through (0, intercept).
        mixture.experts.output.weight.copy_(experts[:, 1].view(2, 1, 1))
        mixture.experts.output.bias.copy_((experts[:, 0] - experts[:, 1] / 2).view(2, 1))
        mixture.router.weight.copy_(router[:, 1].view(1, 2))
        mixture.router.bias.copy_((router[:, 0] - router[:, 1] / 2).view(1, 2))
        expected = mixture.marginal_log_likelihood(posterior.x.unsqueeze(-1), posterior.y)
    torch.testing.assert_close(posterior.log_likelihood(parameters), expected)


def renumbered(posterior: BayesianPiecewise, parameters: Parameters, order: Tensor) -> Parameters:
    """Parameters of the same experts and router in another order, found by least squares on the router."""
    scale = torch.tensor(posterior.prior.router_scale, dtype=torch.float64)
    units = torch.eye(posterior.num_experts - 1, dtype=torch.float64)
    columns = [
        posterior.coefficients({**parameters, "router": unit.unsqueeze(-1).expand(-1, 2)}).router[:, 0] / scale[0]
        for unit in units
    ]
    basis = torch.stack(columns, dim=1)
    router = posterior.coefficients(parameters).router[order] / scale
    return {
        **parameters,
        "experts": parameters["experts"][order],
        "router": torch.linalg.lstsq(basis, router).solution,
    }


def test_renumbering_the_experts_changes_nothing() -> None:
    posterior = problem(3)
    parameters = posterior.prior_draw()
    moved = renumbered(posterior, parameters, torch.tensor([2, 0, 1]))
    assert not torch.allclose(moved["router"], parameters["router"])
    torch.testing.assert_close(posterior.log_joint(moved), posterior.log_joint(parameters))


def test_draws_are_batched() -> None:
    posterior = problem(3)
    draws = [posterior.prior_draw() for _ in range(6)]
    stacked = {name: torch.stack([draw[name] for draw in draws]).unflatten(0, (2, 3)) for name in draws[0]}
    single = torch.stack([posterior.log_joint(draw) for draw in draws]).view(2, 3)
    torch.testing.assert_close(posterior.log_joint(stacked), single)
    assert posterior.log_likelihood(stacked).shape == (2, 3, 12)
    assert posterior.predict(stacked).shape == (2, 3, 12)


def test_prior_has_the_stated_scales() -> None:
    posterior = problem(3)
    count = 4000
    draws = [posterior.prior_draw() for _ in range(count)]
    coefficients = posterior.coefficients({name: torch.stack([draw[name] for draw in draws]) for name in draws[0]})
    experts, router = coefficients.experts.std(0), coefficients.router
    # The standard error of a standard deviation is sd / sqrt(2 n); sum 0 takes a share 1/k of a logit's variance.
    for scale, sd in (
        (posterior.prior.expert_scale, experts),
        (posterior.prior.router_scale, router.std(0) * 1.5**0.5),
    ):
        off = (sd / torch.tensor(scale, dtype=torch.float64) - 1).abs() * (2 * count) ** 0.5
        assert off.max() < 5
    torch.testing.assert_close(router.sum(-2), torch.zeros_like(router.sum(-2)), atol=1e-10, rtol=0)
    log_noise = coefficients.noise.log()
    assert abs(log_noise.mean() - math.log(0.2)) < 5 / count**0.5


def test_predictions_follow_the_likelihood() -> None:
    """P(new y < cut) by counting, against the mixture's distribution function."""
    posterior = problem(3, num_datapoints=4)
    parameters = posterior.prior_draw()
    experts, router, noise = posterior.coefficients(parameters)
    count = 20_000
    repeated = {name: value.expand(count, *value.shape) for name, value in parameters.items()}
    x = torch.stack([torch.ones_like(posterior.x), posterior.x - 0.5], dim=-1)
    cut = (x @ experts.mT).mean(-1)
    below = torch.distributions.Normal(x @ experts.mT, noise).cdf(cut.unsqueeze(-1))
    expected = ((x @ router.mT).softmax(-1) * below).sum(-1)
    frequency = (posterior.predict(repeated) < cut).double().mean(0)
    error = (expected * (1 - expected) / count).sqrt().clamp(min=1 / count)
    assert ((frequency - expected).abs() / error).max() < 5


def test_wrong_arguments_are_named() -> None:
    data = piecewise_data((), 5)
    with pytest.raises(ValueError, match="num_experts must be a positive int, got 0"):
        BayesianPiecewise(data, 0)
    with pytest.raises(ValueError, match=r"data must be one set.*\(3, 5, 1\)"):
        BayesianPiecewise(piecewise_data((3,), 5), 2)
    with pytest.raises(ValueError, match="expert_scale must be two positive numbers"):
        Prior(expert_scale=(1.0, 0.0))
    with pytest.raises(ValueError, match="noise_median must be positive"):
        Prior(noise_median=math.nan)
    with pytest.raises(ValueError, match="noise_sigma must be >= 0"):
        Prior(noise_sigma=-1.0)


def test_model_of_pyro_can_be_conditioned_and_traced() -> None:
    posterior = problem(2)
    trace = pyro.poutine.trace(posterior.model).get_trace()
    assert trace.nodes["assignment"]["value"].shape == (12,)
    assert trace.nodes["y"]["is_observed"]
