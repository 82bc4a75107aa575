"""Experts and routers that are networks, and training on the mixture bound."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from prob_moe.sklearn import MixtureClassifier, MixtureRegressor
from prob_moe.sklearn.networks import Networks
from prob_moe.sklearn.parameters import Layout
from prob_moe.sklearn.training import Options, initial_networks
from tests.sklearn.tables import problem_of, two_lines


def wave(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """What no two lines describe."""
    generator = np.random.default_rng(0)
    x = generator.uniform(-2, 2, (n, 1))
    return x, np.sin(3 * x[:, 0]) + 0.1 * generator.normal(size=n)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        MixtureRegressor(experts="mlp", num_epochs=30),
        MixtureRegressor(3, experts="mlp", objective="bound", num_epochs=30),
        MixtureClassifier(experts="mlp", router="mlp", num_epochs=100, learning_rate=0.05),
        MixtureClassifier(3, objective="bound", num_epochs=100, learning_rate=0.05),
    ]
)
def test_scikit_learn(estimator: object, check: object) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def network() -> MixtureRegressor:
    return MixtureRegressor(2, experts="mlp", router="mlp", num_epochs=300, random_state=0).fit(*wave())


def test_networks_learn_what_lines_cannot(network: MixtureRegressor) -> None:
    x, y = wave()
    linear = MixtureRegressor(2, restarts=10, random_state=0).fit(x, y)
    assert network.score(x, y) > linear.score(x, y) + 0.05
    np.testing.assert_allclose(network.log_likelihood(x, y).sum(), network.log_likelihood_)
    assert network.log_likelihood_ > linear.log_likelihood_ + 50
    assert network.shares_[0] >= network.shares_[1]
    np.testing.assert_allclose(network.responsibilities(x).mean(0), network.shares_)
    assert network.loss_curve_[-1, 0] < network.loss_curve_[0, 0]
    assert "mlp experts, mlp router" in network.summary()
    with pytest.raises(ValueError, match="a mixture of networks has no standard errors"):
        network.standard_errors()
    assert not hasattr(network.fit(x[:50], y[:50]), "coef_")
    network.fit(x, y)


def test_one_row_alone_is_as_in_a_batch_and_survives_files(network: MixtureRegressor, tmp_path: Path) -> None:
    x, y = wave()
    np.testing.assert_allclose(network.predict(x[:1]), network.predict(x)[:1], rtol=1e-12)
    network.save(tmp_path / "network")
    for other in (MixtureRegressor.load(tmp_path / "network"), pickle.loads(pickle.dumps(network))):
        np.testing.assert_array_equal(other.predict_interval(x[:5]), network.predict_interval(x[:5]))
        np.testing.assert_array_equal(other.sample(x, random_state=0), network.sample(x, random_state=0))
        np.testing.assert_array_equal(other.log_likelihood(x, y), network.log_likelihood(x, y))


def test_linear_networks_have_the_likelihood_of_linear_mixtures() -> None:
    problem = problem_of(*two_lines(40), 2)
    networks = initial_networks(problem, Options(None, None, None, 1, 10, 0.1, 0.0))
    layout: Layout = problem.layout
    vector = torch.randn(1, layout.size, dtype=torch.float64) / 2
    parts = layout.split(vector)
    with torch.no_grad():
        networks.experts.output.weight.copy_(parts.location[0].mT)
        networks.experts.output.bias.zero_()
        networks.router.weight.copy_(parts.router[0])
        networks.dispersion.copy_(parts.dispersion[0])
        networks.bounds.copy_(torch.tensor([[-torch.inf], [torch.inf]]))
    ours = networks.log_marginal(problem.columns, problem.router_columns, problem.target, problem.offset)
    torch.testing.assert_close(ours, problem.log_joint(vector)[0].logsumexp(0))


@pytest.mark.parametrize("hidden", [None, 5])
def test_the_bound_is_one_and_an_equality_with_all_experts(hidden: int | None) -> None:
    problem = problem_of(*two_lines(40), 4)
    problem = replace(problem, ceilings=torch.tensor([5.0], dtype=torch.float64))
    torch.manual_seed(0)
    networks: Networks = initial_networks(problem, Options(hidden, 5, None, 1, 10, 0.1, 0.0))
    data = (problem.columns, problem.router_columns, problem.target, problem.offset)
    generator = torch.Generator().manual_seed(0)
    exact, every = networks.log_marginal(*data), networks.bound(*data, 4, generator)
    torch.testing.assert_close(every, exact)
    used = [parameter for parameter in networks.parameters() if parameter.numel()]
    slopes = [torch.autograd.grad(value.sum(), used) for value in (every, exact)]
    torch.testing.assert_close(*slopes)
    with torch.no_grad():
        draws = torch.stack([networks.bound(*data, 2, generator) for _ in range(400)])
        # What each draw is the logarithm of has the likelihood as its mean.
        ratio = (draws - exact.detach()).exp()
    error = ratio.std(0) / np.sqrt(len(ratio))
    assert float(((ratio.mean(0) - 1) / error).abs().max()) < 5
    assert float((draws.mean(0) - exact.detach()).max()) < 5 * float((draws.std(0) / np.sqrt(len(draws))).max())


def test_dispersions_stay_within_bounds(network: MixtureRegressor) -> None:
    x, y = wave()
    exact = MixtureRegressor(1, experts="mlp", num_epochs=400, learning_rate=0.05, random_state=0).fit(
        x, 0 * y + x[:, 0]
    )
    law = exact.mixture_.local(x)[1].exp() * exact.mixture_.y_scale
    assert float(law.min()) > 0
    assert np.isfinite(exact.log_likelihood(x, np.full(len(x), 1e6))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_selected=3), "num_selected=3 must be at most the number of experts, 2"),
        (dict(num_selected=1), "num_selected=1 must be an int of at least 2"),
        (dict(num_selected=2, objective="marginal"), "num_selected=2 is for the mixture bound"),
        (dict(objective="elbo"), "objective='elbo' must be one of 'auto', 'marginal', 'bound'"),
        (dict(experts="tree"), "experts='tree' must be one of 'linear', 'mlp'"),
        (dict(hidden_features=0), "hidden_features=0 must be an int of at least 1"),
        (dict(learning_rate=-1), "learning_rate=-1 must be a positive number"),
        (dict(validation_fraction=1.5), "validation_fraction=1.5 must be a number between 0 and 1"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureRegressor(**options).fit(*two_lines(20))


def test_units_are_for_exact_fits() -> None:
    x, y = two_lines(20)
    with pytest.raises(ValueError, match="units are for linear experts"):
        MixtureRegressor(experts="mlp", router="constant").fit(x, y, units=np.arange(20) // 2)


def test_two_of_three_experts_in_minibatches() -> None:
    x, y = two_lines(300)
    options = dict(num_selected=2, batch_size=64, num_epochs=20, learning_rate=0.05, random_state=0)
    fits = [MixtureRegressor(3, **options).fit(x, y) for _ in range(2)]
    np.testing.assert_array_equal(fits[0].predict(x), fits[1].predict(x))
    assert fits[0].log_likelihood_ > MixtureRegressor(1).fit(x, y).log_likelihood_ + 100
    assert "objective" in fits[0].get_params()
    classifier = MixtureClassifier(3, **options).fit(x, y > 0)
    assert classifier.score(x, y > 0) > 0.8
