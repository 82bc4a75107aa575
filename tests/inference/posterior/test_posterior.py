"""Draws of NUTS against closed forms and simulated truths; what the draws are packed into."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from inference.posterior.report import compare, loo, summary
from inference.posterior.sampling import RAW, Sampling, relabel, sample_posterior
from models.piecewise import PiecewiseData, piecewise_data
from models.piecewise_bayes import BayesianPiecewise, Prior, features
from prob_moe._arviz import az

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_experts() -> tuple[PiecewiseData, az.InferenceData]:
    """Chains whose labels differ."""
    torch.manual_seed(0)
    data = piecewise_data((), 60)
    return data, sample_posterior(data, 2, Sampling(num_chains=3, num_warmup=120, num_draws=100, seed=1))


def closed_form(data: PiecewiseData, prior: Prior, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Posterior mean and covariance of one line with known noise, and the log evidence."""
    x, y = features(data.x.double().squeeze(-1)), data.y.double()
    scale = torch.tensor(prior.expert_scale, dtype=torch.float64)
    precision = torch.diag(scale**-2) + x.mT @ x / noise**2
    covariance = precision.inverse()
    marginal = x @ torch.diag(scale**2) @ x.mT + noise**2 * torch.eye(len(y), dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(torch.zeros_like(y), marginal).log_prob(y)
    return covariance @ x.mT @ y / noise**2, covariance, evidence


def assert_moments(draws: az.InferenceData, name: str, mean: np.ndarray, sd: np.ndarray) -> None:
    """Mean and variance of the draws within five Monte Carlo standard errors."""
    values = draws.posterior[name]
    for drawn, expected in ((values, mean), ((values - mean) ** 2, sd**2)):
        error = az.mcse(drawn.to_dataset(name=name))[name]
        assert (np.abs(drawn.mean(("chain", "draw")) - expected) / error).max() < 5


def test_one_expert_with_known_noise_is_linear_regression() -> None:
    prior = Prior(noise_median=0.4, noise_sigma=0.0)
    data = piecewise_data((), 30)
    draws = sample_posterior(data, 1, Sampling(num_chains=2, num_warmup=100, num_draws=250), prior)
    mean, covariance, _ = closed_form(data, prior, 0.4)
    assert_moments(draws, "experts", mean.numpy()[None], covariance.diagonal().sqrt().numpy()[None])
    assert "noise" not in draws.posterior
    assert "router" not in draws.posterior


def test_one_expert_with_free_noise_is_regression_integrated_over_noise() -> None:
    prior = Prior()
    data = piecewise_data((), 30)
    draws = sample_posterior(data, 1, Sampling(num_chains=2, num_warmup=100, num_draws=250), prior)
    z = torch.linspace(-4, 4, 401, dtype=torch.float64)
    noise = prior.noise_median * (prior.noise_sigma * z).exp()
    parts = [closed_form(data, prior, float(s)) for s in noise]
    log_weights = torch.stack([evidence for *_, evidence in parts]) - 0.5 * z**2
    weights = log_weights.softmax(0)
    means, variances = (torch.stack(stack) for stack in zip(*((m, c.diagonal()) for m, c, _ in parts)))
    mean = weights @ means
    sd = (weights @ (variances + means**2) - mean**2).sqrt()
    assert_moments(draws, "experts", mean.numpy()[None], sd.numpy()[None])
    noise_mean = weights @ noise
    assert_moments(draws, "noise", noise_mean.numpy(), (weights @ noise**2 - noise_mean**2).sqrt().numpy())


def test_two_experts_on_few_points_against_weighted_draws_of_the_prior() -> None:
    """Self-normalised importance sampling needs no gradient, no chain, and no mode: it sees all copies of all modes."""
    prior = Prior((1.0, 2.0), (3.0, 6.0), noise_median=0.5, noise_sigma=0.5)
    data = PiecewiseData(torch.tensor([[0.1], [0.4], [0.6], [0.9]]), torch.tensor([0.0, 0.2, 0.9, 0.1]))
    posterior = BayesianPiecewise(data, 2, prior)
    count = 400_000
    proposals = {
        name: torch.randn(count, *value.shape, dtype=torch.float64) for name, value in posterior.prior_draw().items()
    }
    log_likelihood = posterior.log_likelihood(proposals).sum(-1)
    weights = log_likelihood.softmax(0)
    draws = sample_posterior(data, 2, Sampling(num_chains=2, num_warmup=100, num_draws=250), prior)
    draws.posterior["log_likelihood"] = draws.log_likelihood.y.sum("datapoint")
    for name, values in (("noise", posterior.coefficients(proposals).noise), ("log_likelihood", log_likelihood)):
        expected = weights @ values
        error = (weights.square() @ (values - expected).square()).sqrt()
        error = torch.hypot(error, torch.tensor(float(az.mcse(draws, var_names=[name])[name])))
        assert abs(float(draws.posterior[name].mean()) - expected) < 5 * error, name


def test_chains_agree_once_the_experts_are_in_order(two_experts: tuple[PiecewiseData, az.InferenceData]) -> None:
    _, draws = two_experts
    table = summary(draws)
    labelled = table.index.str.startswith("experts")
    assert (table.r_hat_as_drawn[labelled] > 1.4).all()
    assert (table.r_hat < 1.1).all()
    assert table.r_hat_as_drawn[["noise", "boundary[0]", "log joint (nats)"]].isna().all()
    # The lines of the task: -0.2 + 0.8 x, then 2 - 2 x, with the break at 1/2.
    truth = {"experts[0, level]": 0.2, "experts[0, slope]": 0.8, "experts[1, level]": 1, "experts[1, slope]": -2}
    for name, value in (truth | {"boundary[0]": 0.5, "noise": 0.1}).items():
        assert abs(table["mean"][name] - value) < 4 * table.sd[name], name


def test_relabelling_permutes_experts_and_router_alike() -> None:
    rng = np.random.default_rng(0)
    drawn = {"experts": rng.normal(size=(2, 5, 4, 2)), "router": rng.normal(size=(2, 5, 4, 2))}
    ordered = relabel(drawn)
    for index in np.ndindex(2, 5):
        order = sorted(range(4), key=lambda j: drawn["router"][(*index, j, 1)])
        for name in drawn:
            np.testing.assert_array_equal(ordered[name][index], drawn[name][index][order])
    # Whatever the labels were, the outcome is the same.
    shuffled = {name: values[..., [2, 0, 3, 1], :] for name, values in drawn.items()}
    for name, values in relabel(shuffled).items():
        np.testing.assert_array_equal(values, ordered[name])


def test_file_holds_everything_by_name(two_experts: tuple[PiecewiseData, az.InferenceData], tmp_path: Path) -> None:
    data, draws = two_experts
    draws.to_netcdf(str(tmp_path / "draws.nc"))
    loaded = az.from_netcdf(str(tmp_path / "draws.nc"))
    assert loaded.posterior.experts.dims == ("chain", "draw", "expert", "feature")
    assert loaded[RAW].router.dims == ("chain", "draw", "label", "feature")
    assert list(loaded.posterior.feature.values) == ["level", "slope"]
    assert loaded.posterior_predictive.y.shape == loaded.log_likelihood.y.shape == (3, 100, 60)
    assert loaded.sample_stats.diverging.dtype == bool
    np.testing.assert_allclose(loaded.observed_data.y, data.y.double())
    # The stored log-likelihood is that of the stored coefficients, labels or no labels.
    for group in ("posterior", RAW):
        experts, router = (torch.tensor(loaded[group][name].values[0, 7]) for name in ("experts", "router"))
        noise = float(loaded.posterior.noise[0, 7])
        x = features(data.x.double().squeeze(-1))
        log_p = (x @ router.mT).log_softmax(-1)
        expected = torch.distributions.Normal(x @ experts.mT, noise).log_prob(data.y.double().unsqueeze(-1))
        np.testing.assert_allclose(loaded.log_likelihood.y[0, 7], (log_p + expected).logsumexp(-1))


def test_leave_one_out_prefers_two_experts_and_matches_the_closed_form(
    two_experts: tuple[PiecewiseData, az.InferenceData],
) -> None:
    data, draws = two_experts
    prior = Prior(noise_median=0.4, noise_sigma=0.0)
    one = sample_posterior(data, 1, Sampling(num_chains=4, num_warmup=100, num_draws=250), prior)
    loos = {1: loo(one), 2: loo(draws)}
    table = compare(loos)
    assert list(table.index) == [2, 1]
    assert table.behind[1] > 4 * table.behind_se[1] > 0
    assert table.behind[2] == 0
    # log p(y_i | the others) of linear regression, as the difference of two evidences.
    everything = closed_form(data, prior, 0.4)[2]
    keep = ~torch.eye(60, dtype=torch.bool)
    exact = [everything - closed_form(PiecewiseData(data.x[k], data.y[k]), prior, 0.4)[2] for k in keep]
    by_chain = [float(loo(one.isel(chain=[chain])).elpd_loo) for chain in range(4)]
    assert abs(np.mean(by_chain) - float(sum(exact))) < 5 * np.std(by_chain, ddof=1) / 2
    assert list(compare({2: loos[2]}).behind) == [0]


def test_draws_depend_on_the_seed_alone() -> None:
    data = piecewise_data((), 15)
    again = [
        sample_posterior(data, 2, Sampling(2, 20, 10, num_jobs=jobs, seed=seed)).posterior.experts.values
        for jobs, seed in ((1, 0), (2, 0), (1, 1))
    ]
    np.testing.assert_array_equal(again[0], again[1])
    assert not np.allclose(again[0], again[2])
    assert not np.allclose(again[0][0], again[0][1])


def test_every_chain_is_reported() -> None:
    finished = []
    sample_posterior(piecewise_data((), 5), 1, Sampling(3, 5, 5), advance=lambda: finished.append(1))
    assert len(finished) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_chains": 1}, "num_chains must be an int of at least 2, got 1"),
        ({"num_draws": 3}, "num_draws must be an int of at least 4, got 3"),
        ({"num_warmup": 0}, "num_warmup must be an int of at least 1, got 0"),
        ({"target_accept": math.nan}, "target_accept must lie inside"),
    ],
)
def test_wrong_sampling_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
