"""Mixtures of regressions: what is fitted, predicted, drawn and said."""

import warnings

import numpy as np
import pytest
import statsmodels.api as sm
import torch

from prob_moe.sklearn import FloorWarning, MixtureRegressor
from tests.sklearn.oracle import best_off_the_floor
from tests.sklearn.tables import real, two_lines

#: package, item, target and columns
TABLES = [
    ("MASS", "mcycle", "accel", "times"),
    ("datasets", "faithful", "eruptions", "waiting"),
    ("quantreg", "engel", "foodexp", "income"),
    ("datasets", "trees", "Volume", "Girth", "Height"),
    ("carData", "Prestige", "prestige", "income", "education"),
    ("datasets", "cars", "dist", "speed"),
    ("MASS", "whiteside", "Gas", "Temp"),
    ("MASS", "GAGurine", "GAG", "Age"),
    ("MASS", "geyser", "duration", "waiting"),
    ("lattice", "ethanol", "NOx", "E", "C"),
]
#: those whose target is a count
COUNTS = [
    ("MASS", "epil", "y", "base", "age"),
    ("AER", "DoctorVisits", "visits", "age", "income", "illness"),
    ("pscl", "bioChemists", "art", "kid5", "phd", "ment"),
]

pytestmark = pytest.mark.filterwarnings("ignore::prob_moe.sklearn.FloorWarning")


@pytest.fixture(scope="module")
def fitted() -> MixtureRegressor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FloorWarning)
        return MixtureRegressor(2, restarts=20, random_state=0).fit(*two_lines())


@pytest.mark.slow
@pytest.mark.parametrize("router", ["constant", "linear"])
@pytest.mark.parametrize("num_experts", [2, 3])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table[1])
def test_no_maximum_is_missed(table: tuple[str, ...], num_experts: int, router: str) -> None:
    x, y = real(*table)
    oracle = best_off_the_floor(x, y, num_experts, router)
    ours = MixtureRegressor(num_experts, router=router, random_state=0).fit(x, y)
    assert not ours.on_floor_
    assert ours.log_likelihood_ >= oracle - 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("router", ["constant", "linear"])
@pytest.mark.parametrize("table", COUNTS, ids=lambda table: table[1])
def test_no_maximum_of_counts_is_missed(table: tuple[str, ...], router: str) -> None:
    x, y = real(*table)
    oracle = best_off_the_floor(x, y, 2, router, starts=200 if len(y) < 2000 else 20, counts=True)
    ours = MixtureRegressor(2, family="poisson", router=router, random_state=0).fit(x, y)
    assert ours.log_likelihood_ >= oracle - 1e-3


def test_no_maximum_is_missed_in_short() -> None:
    x, y = real(*TABLES[2])
    oracle = best_off_the_floor(x, y, 2, "linear", starts=20)
    assert MixtureRegressor(restarts=20, random_state=0).fit(x, y).log_likelihood_ >= oracle - 1e-3


@pytest.mark.parametrize("random_state", [0, 1])
def test_a_line_through_a_few_rounded_rows_is_found(random_state: int) -> None:
    """The best of 200 starts of the oracle, which takes a while: -183.998, with each of two seeds."""
    x, y = real(*TABLES[1])
    ours = MixtureRegressor(router="constant", restarts=40, random_state=random_state).fit(x, y)
    assert not ours.on_floor_
    assert ours.log_likelihood_ >= -183.998


def test_one_expert_is_a_linear_model() -> None:
    x, y = two_lines(50)
    weights = np.arange(50) % 4
    ours = MixtureRegressor(1).fit(x, y, weights)
    errors, robust = ours.standard_errors(), ours.standard_errors("hc0")
    mean_square = float(np.average((y - ours.predict(x)) ** 2, weights=weights))
    design = sm.add_constant(x)
    # Their scale divides by n - p unless told otherwise; ours is the maximum likelihood one.
    theirs = sm.GLM(y, design, freq_weights=weights).fit(scale=mean_square)
    np.testing.assert_allclose(np.append(ours.intercept_, ours.coef_), theirs.params, rtol=1e-7)
    np.testing.assert_allclose(np.append(errors["intercept"], errors["coef"]), theirs.bse, rtol=1e-6)
    np.testing.assert_allclose(ours.scale_, np.sqrt(mean_square), rtol=1e-7)
    np.testing.assert_allclose(errors["scale"], np.sqrt(mean_square / 2 / weights.sum()), rtol=1e-6)
    rows = np.repeat(np.arange(50), weights)
    white = sm.OLS(y[rows], design[rows]).fit().get_robustcov_results("HC0")
    np.testing.assert_allclose(np.append(robust["intercept"], robust["coef"]), white.bse, rtol=1e-6)
    np.testing.assert_allclose(ours.log_likelihood_, white.llf, rtol=1e-9)
    np.testing.assert_allclose(ours.aic_, white.aic + 2, rtol=1e-9)  # they do not count the scale
    np.testing.assert_allclose(ours.icl_, ours.bic_)


def in_units(parameters: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The log-likelihood of every row from the parameters as documented: two experts, two columns."""
    first, second, router = parameters[:4], parameters[4:8], parameters[8:]
    design = torch.cat([torch.ones_like(x[:, :1]), x], 1)
    log_odds = design @ router
    joint = [
        torch.distributions.Normal(design @ each[:3], each[3].exp()).log_prob(y) - torch.nn.functional.softplus(sign)
        for each, sign in [(first, log_odds), (second, -log_odds)]
    ]
    return torch.stack(joint).logsumexp(0)


def test_parameters_and_errors_are_in_the_units_of_the_table(fitted: MixtureRegressor) -> None:
    x, y = (torch.from_numpy(each) for each in two_lines())
    parameters = torch.from_numpy(fitted.parameters_)
    rows = in_units(parameters, x, y)
    np.testing.assert_allclose(rows.numpy(), fitted.log_likelihood(x.numpy(), y.numpy()), rtol=1e-9)
    np.testing.assert_allclose(rows.sum(), fitted.log_likelihood_)
    hessian = torch.autograd.functional.hessian(lambda each: in_units(each, x, y).sum(), parameters)
    covariance = np.linalg.inv(-hessian.numpy())
    np.testing.assert_allclose(fitted.covariance_, covariance, rtol=1e-5, atol=1e-9)
    scores = torch.autograd.functional.jacobian(lambda each: in_units(each, x, y), parameters).numpy()
    np.testing.assert_allclose(
        fitted.robust_covariance_, covariance @ scores.T @ scores @ covariance, rtol=1e-5, atol=1e-9
    )
    assert fitted.shares_[0] >= fitted.shares_[1]
    np.testing.assert_allclose(fitted.shares_, fitted.responsibilities(x.numpy()).mean(0))


@pytest.mark.slow
def test_errors_are_those_of_repeated_experiments() -> None:
    """The spread of estimates over tables, against the errors that each table claims."""
    fits = []
    for seed in range(60):
        x, y = two_lines(200, seed=seed)
        fits.append(MixtureRegressor(2, restarts=4, random_state=0).fit(x, y))
    slope = np.array([fit.coef_[fit.coef_[:, 0].argmax(), 0] for fit in fits])
    claimed = [fit.standard_errors()["coef"][fit.coef_[:, 0].argmax(), 0] for fit in fits]
    # A standard deviation from 60 values is known to 1 / sqrt(120) of itself.
    assert abs(np.std(slope) / np.median(claimed) - 1) < 5 / np.sqrt(120)
    assert abs(slope.mean() - 1) < 5 * np.std(slope) / np.sqrt(60)


@pytest.mark.parametrize("router", ["linear", pytest.param("constant", marks=pytest.mark.slow)])
def test_neither_order_nor_repetition_matters(router: str) -> None:
    x, y = two_lines(40)
    weights = np.arange(40) % 3
    generator = np.random.default_rng(0)
    rows = generator.permutation(np.repeat(np.arange(40), weights))
    estimator = MixtureRegressor(2, router=router, restarts=8, random_state=0)
    weighted = estimator.fit(x, y, weights).parameters_
    np.testing.assert_array_equal(estimator.fit(x[rows], y[rows]).parameters_, weighted)
    assert not np.allclose(estimator.fit(x, y).parameters_, weighted)


def test_units_of_measurement_do_not_matter(fitted: MixtureRegressor) -> None:
    x, y = two_lines()
    other = MixtureRegressor(2, restarts=20, random_state=0).fit(x * [1e6, 1e-3] + [1e7, 5], 1e-5 * y - 3)
    np.testing.assert_allclose(other.coef_, fitted.coef_ * 1e-5 / [1e6, 1e-3], rtol=1e-5)
    np.testing.assert_allclose(other.log_likelihood_, fitted.log_likelihood_ - len(y) * np.log(1e-5))


@pytest.mark.slow
def test_draws_follow_the_law_of_which_quantiles_and_means_are_told(fitted: MixtureRegressor) -> None:
    x = two_lines()[0][:5]
    draws = fitted.sample(x, num_samples=4000, random_state=0)
    spread = draws.std(0) / np.sqrt(len(draws))
    assert np.abs((draws.mean(0) - fitted.predict(x)) / spread).max() < 5
    low, high = fitted.predict_interval(x, coverage=0.8).T
    deviation = np.sqrt(0.1 * 0.9 / len(draws))
    assert np.abs((draws < low).mean(0) - 0.1).max() < 5 * deviation
    assert np.abs((draws > high).mean(0) - 0.1).max() < 5 * deviation
    # One expert's interval would not do.
    scale = fitted.scale_[0] * 1.2816
    assert np.abs((draws < fitted.predict(x) - scale).mean(0) - 0.1).max() > 5 * deviation
    assert fitted.sample(x, random_state=0).shape == (5,)
    np.testing.assert_array_equal(fitted.sample(x, random_state=3), fitted.sample(x, random_state=3))


def test_one_row_alone_is_as_in_a_batch(fitted: MixtureRegressor) -> None:
    x, y = two_lines()
    np.testing.assert_allclose(fitted.predict(x[:1]), fitted.predict(x)[:1], rtol=1e-12)
    np.testing.assert_allclose(fitted.responsibilities(x[:1], y[:1]), fitted.responsibilities(x, y)[:1], rtol=1e-12)
    np.testing.assert_allclose(fitted.responsibilities(x, y).sum(1), 1)


def test_the_mixture_is_made_of_its_experts(fitted: MixtureRegressor) -> None:
    x, _ = two_lines()
    means = fitted.expert_means(x)
    np.testing.assert_allclose(means, x @ fitted.coef_.T + fitted.intercept_)
    np.testing.assert_allclose((fitted.responsibilities(x) * means).sum(1), fitted.predict(x))
    low, high = fitted.predict_interval(x, 0.8).T
    np.testing.assert_allclose(fitted.cdf(x, low), 0.1)
    np.testing.assert_allclose(fitted.cdf(x, high), 0.9)


def test_far_away_nothing_overflows(fitted: MixtureRegressor) -> None:
    x = np.array([[1e8, 0.0], [-1e8, 1e8]])
    for value in (fitted.predict(x), fitted.predict_interval(x), fitted.sample(x), fitted.responsibilities(x)):
        assert np.isfinite(value).all()
    assert not np.isnan(fitted.log_likelihood(x, np.zeros(2))).any()


def test_more_columns_than_rows_and_columns_that_repeat() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(12, 30)), generator.normal(size=12)
    fits = [MixtureRegressor(2, restarts=6, random_state=0).fit(x, y).predict(x) for _ in range(2)]
    np.testing.assert_array_equal(*fits)
    assert np.isfinite(fits[0]).all()
    x, y = two_lines(80, columns=1)
    twice = MixtureRegressor(2, restarts=10, random_state=0).fit(np.hstack([x, x]), y)
    np.testing.assert_allclose(twice.coef_[:, 0], twice.coef_[:, 1], rtol=1e-4)
    once = MixtureRegressor(2, restarts=10, random_state=0).fit(x, y)
    np.testing.assert_allclose(twice.log_likelihood_, once.log_likelihood_, atol=1e-3)


def test_each_network_has_columns_of_its_own() -> None:
    x, y = two_lines(60, columns=3)
    fitted = MixtureRegressor(2, expert_columns=[2, 0], router_columns=[1], restarts=8, random_state=0).fit(x, y)
    assert fitted.coef_.shape == (2, 2)
    assert fitted.router_coef_.shape == (2, 1)
    moved = x + np.array([0, 5, 0])
    np.testing.assert_array_equal(fitted.responsibilities(x + np.array([1, 0, 1])), fitted.responsibilities(x))
    assert not np.allclose(fitted.responsibilities(moved), fitted.responsibilities(x))


def test_a_better_maximum_on_the_floor_is_reported() -> None:
    x, y = two_lines(60)
    y[:30] = 7  # rows on one plane
    with pytest.warns(FloorWarning, match="off it"):
        fitted = MixtureRegressor(2, restarts=40, random_state=0).fit(x, y)
    assert fitted.floor_log_likelihood_ > fitted.log_likelihood_
    assert not fitted.on_floor_
    line = np.linspace(0, 1, 30)
    with pytest.warns(FloorWarning, match="every maximum"):
        exact = MixtureRegressor(1).fit(line[:, None], 2 * line)
    np.testing.assert_allclose(exact.coef_, [[2]])
    assert np.isnan(exact.standard_errors()["scale"]).all()


def test_a_constant_column_is_named() -> None:
    x, y = two_lines(60)
    x[:, 1] = 3
    with pytest.warns(UserWarning, match="constant in column 1: its coefficients are 0"):
        fitted = MixtureRegressor(2, restarts=8, random_state=0).fit(x, y)
    np.testing.assert_array_equal(fitted.coef_[:, 1], 0)
    assert np.isnan(fitted.standard_errors()["coef"][:, 1]).all()
    assert fitted.predict(x + np.array([0, 1])).tolist() == fitted.predict(x).tolist()


def test_summary_has_everything(fitted: MixtureRegressor) -> None:
    words = fitted.summary("hc0")
    assert repr(words) == str(words)
    for value in (f"{fitted.log_likelihood_:.6g}", f"{fitted.bic_:.6g}", "HC0", "expert 1, share", "x1", "router"):
        assert value in words
    assert f"{fitted.coef_[1, 0]:.5g}" in words


X, Y = two_lines(20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_experts=0), "num_experts=0 must be an int of at least 1"),
        (dict(num_experts=2.0), "num_experts=2.0 must be an int"),
        (dict(num_experts=21), "num_experts=21 must be at most the number of distinct rows, but n_samples=20"),
        (dict(family="normal"), "family='normal' must be one of 'gaussian'"),
        (dict(router="mlp2"), "router='mlp2' must be one of"),
        (dict(restarts=0), "restarts=0 must be an int of at least 1"),
        (dict(expert_columns="a"), r"expert_columns='a' must be a list of columns, \['a'\]"),
        (dict(expert_columns=["a"]), "expert_columns names column 'a', but X has no column names"),
        (dict(router_columns=[2]), "router_columns has 2, which is no column of X: 0 to 1"),
        (dict(router_columns=[1, 1]), r"router_columns=\[1, 1\] has a column twice"),
    ],
)
def test_wrong_options_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureRegressor(**options).fit(X, Y)


def test_wrong_weights_and_arguments_are_named(fitted: MixtureRegressor) -> None:
    with pytest.raises(ValueError, match=r"sample_weight must not be negative, but is -1.0 in row 3"):
        MixtureRegressor().fit(X, Y, np.where(np.arange(20) == 3, -1, 1))
    with pytest.raises(ValueError, match="sample_weight must be positive for at least one row"):
        MixtureRegressor().fit(X, Y, np.zeros(20))
    with pytest.raises(ValueError, match=r"coverage=1.0 must be a number between 0 and 1"):
        fitted.predict_interval(X, coverage=1.0)
    with pytest.raises(ValueError, match="num_samples=0 must be an int"):
        fitted.sample(X, num_samples=0)
    with pytest.raises(ValueError, match="kind='white' must be one of 'hessian', 'hc0'"):
        fitted.summary("white")
