"""Laws other than the normal: densities, single experts, mixtures, quantiles; offsets, trials, units."""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy import stats

from prob_moe.sklearn import MixtureRegressor
from prob_moe.sklearn.families import REGRESSIONS
from prob_moe.sklearn.quantiles import mixture_quantile

pytestmark = pytest.mark.filterwarnings("ignore::prob_moe.sklearn.FloorWarning")

TRIALS = np.arange(160) % 5 + 1


def drawn(family: str, n: int = 160) -> tuple[np.ndarray, np.ndarray, dict]:
    """Two experts with predictors 0.5 + x and 1 - x/2."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=n)
    predictor = np.where(generator.uniform(size=n) < 0.6, 0.5 + x, 1 - x / 2)
    trials = TRIALS[:n].astype(float)
    dispersions = np.array([[np.log(0.5)], [np.log(4.0)]])
    y = REGRESSIONS[family]().law(predictor[None], dispersions, trials).rvs(random_state=generator)
    return x[:, None], y.astype(float), dict(trials=trials) if family == "binomial" else {}


@pytest.mark.parametrize("family", REGRESSIONS)
def test_density_is_the_law(family: str) -> None:
    law, (_, y, extra) = REGRESSIONS[family](), drawn(family)
    trials = extra.get("trials", np.ones_like(y))
    target = torch.from_numpy(np.stack([y, trials]) if family == "binomial" else y[None])
    predictors = np.linspace(-1, 1, len(y))[None]
    dispersions = np.full((law.num_dispersions, len(y)), 0.7)
    ours = law.log_prob(target, tuple(torch.from_numpy(np.concatenate([predictors, dispersions]))[:, None, None]))
    frozen = law.law(predictors, dispersions, trials)
    theirs = frozen.logpmf(y) if law.discrete else frozen.logpdf(y)
    np.testing.assert_allclose(ours[0, 0].numpy(), theirs, rtol=1e-9)
    if family != "student":
        np.testing.assert_allclose(law.mean(predictors, dispersions, trials), frozen.mean())


@pytest.mark.parametrize("family", ["poisson", "binomial", "gamma"])
def test_one_expert_is_a_generalised_linear_model(family: str) -> None:
    x, y, extra = drawn(family)
    offset = np.linspace(-0.5, 0.5, len(y))
    ours = MixtureRegressor(1, family=family).fit(x, y, offset=offset, **extra)
    errors = ours.standard_errors()
    design, endog = sm.add_constant(x), y
    law = {"poisson": sm.families.Poisson(), "binomial": sm.families.Binomial()}.get(family)
    if family == "gamma":
        law = sm.families.Gamma(sm.families.links.Log())
    if family == "binomial":
        endog = np.column_stack([y, extra["trials"] - y])
    scale = float(ours.scale_[0] ** 2) if family == "gamma" else 1.0
    model = sm.GLM(endog, design, family=law, offset=offset)
    theirs = model.fit(scale=scale, tol=1e-12, maxiter=200)
    np.testing.assert_allclose(np.append(ours.intercept_, ours.coef_), theirs.params, rtol=1e-6)
    if family == "gamma":  # not canonical: the observed information at their parameters
        bse = np.sqrt(np.diag(np.linalg.inv(-model.hessian(theirs.params, scale=scale, observed=True))))
    else:
        bse = theirs.bse
    np.testing.assert_allclose(np.append(errors["intercept"], errors["coef"]), bse, rtol=1e-5)
    np.testing.assert_allclose(ours.log_likelihood_, model.loglike(theirs.params, scale=scale), rtol=1e-8)
    np.testing.assert_allclose(ours.predict(x, offset=offset, **extra), theirs.fittedvalues * extra.get("trials", 1))


@pytest.mark.slow
@pytest.mark.parametrize("family", REGRESSIONS)
def test_a_mixture_of_two_is_better_than_one_and_draws_its_law(family: str) -> None:
    x, y, extra = drawn(family)
    ours = MixtureRegressor(2, family=family, router="constant", restarts=6, random_state=0).fit(x, y, **extra)
    one = MixtureRegressor(1, family=family).fit(x, y, **extra)
    assert ours.log_likelihood_ > one.log_likelihood_ + 1
    np.testing.assert_allclose(ours.log_likelihood(x, y, **extra).sum(), ours.log_likelihood_)
    assert ours.converged_
    some, few = x[:6], {name: value[:6] for name, value in extra.items()}
    draws = ours.sample(some, num_samples=3000, random_state=0, **few)
    error = draws.std(0) / np.sqrt(len(draws))
    if family != "student":
        assert np.abs((draws.mean(0) - ours.predict(some, **few)) / error).max() < 5
    low, high = ours.predict_interval(some, 0.8, **few).T
    spread = np.sqrt(0.1 * 0.9 / len(draws))
    assert ((draws < low).mean(0) < 0.1 + 5 * spread).all()
    assert ((draws <= low).mean(0) > 0.1 - 5 * spread).all()
    assert ((draws > high).mean(0) < 0.1 + 5 * spread).all()
    assert ((draws >= high).mean(0) > 0.1 - 5 * spread).all()


def test_quantiles_of_counts_are_the_least_ones() -> None:
    p = np.array([[0.3], [0.7]])
    law = stats.poisson([[2.0], [9.0]])
    each = np.arange(60)
    below = 0.3 * stats.poisson(2).cdf(each) + 0.7 * stats.poisson(9).cdf(each)
    for probability in (0.01, 0.2, 0.5, 0.97):
        least = int(np.argmax(below >= probability))
        assert mixture_quantile(law, probability, p, discrete=True).tolist() == [least]


def test_units_share_their_expert() -> None:
    """Rows that cannot be told apart one by one can in units of eight."""
    generator = np.random.default_rng(0)
    units = np.repeat(np.arange(40), 8)
    second = np.repeat(generator.uniform(size=40) < 0.4, 8)
    x = generator.normal(size=(320, 1))
    y = np.where(second, 1 - 0.5 * x[:, 0], x[:, 0]) + generator.normal(size=320)
    options = dict(router="constant", restarts=6, random_state=0)
    ours = MixtureRegressor(2, **options).fit(x, y, units=units)
    np.testing.assert_allclose(ours.coef_[:, 0], [1, -0.5], atol=0.3)
    alone = ours.log_likelihood(x, y)
    joint = np.log(ours.shares_) + np.stack(
        [stats.norm(b + x[:, 0] * c, s).logpdf(y) for b, c, s in zip(ours.intercept_, ours.coef_[:, 0], ours.scale_)], 1
    )
    joint = joint - np.log(ours.shares_)
    together = np.logaddexp.reduce(np.log(ours.shares_) + joint.reshape(40, 8, 2).sum(1), 1)
    np.testing.assert_allclose(together.sum(), ours.log_likelihood_)
    assert together.sum() > alone.sum()
    assert ours.num_observations_ == 40
    order = generator.permutation(320)
    again = MixtureRegressor(2, **options).fit(x[order], y[order], units=units[order].astype(str))
    np.testing.assert_allclose(again.parameters_, ours.parameters_, rtol=1e-9)
    with pytest.raises(ValueError, match="units: column 0 varies within a unit"):
        MixtureRegressor(2).fit(x, y, units=units)


@pytest.mark.slow
def test_rows_far_off_do_not_move_student() -> None:
    x, y, _ = drawn("gaussian", 80)
    spoilt = y.copy()
    spoilt[:2] = 1e4
    robust = MixtureRegressor(1, family="student")
    clean, dirty = robust.fit(x, y).coef_[0, 0], robust.fit(x, spoilt).coef_[0, 0]
    assert abs(dirty - clean) < 0.3
    plain = MixtureRegressor(1)
    assert abs(plain.fit(x, y).coef_[0, 0] - plain.fit(x, spoilt).coef_[0, 0]) > 10
    assert robust.degrees_of_freedom_[0] < 5


X = np.arange(6.0)[:, None]


@pytest.mark.parametrize(
    ("family", "y", "extra", "message"),
    [
        ("poisson", [0, 1, 2, 1.5, 2, 1], {}, "y must hold counts for family='poisson', but is 1.5 in row 3"),
        ("gamma", [1, 2, 3, 0, 1, 2], {}, "y must be positive for family='gamma', but is 0.0 in row 3"),
        ("binomial", [0, 1, 2, 0, 1, 0], {}, "from 0 to trials, but is 2.0 of 1.0 in row 2"),
        ("binomial", [0, 1, 1, 0, 1, 0], dict(trials=1.5), "trials must be counts, but is 1.5 in row 0"),
        ("poisson", [0, 1, 1, 0, 1, 0], dict(trials=3), "trials are of no use for family='poisson'"),
        ("poisson", [0, 1, 1, 0, 1, 0], dict(offset=[1, 2]), r"offset must have a number for each of 6 rows"),
        ("poisson", [0, 1, 1, 0, 1, 0], dict(offset=np.inf), "offset must be finite, but is inf in row 0"),
        ("poisson", [0, 1, 1, 0, 1, 0], dict(units=[1]), "units must have a name for each of 6 rows"),
    ],
)
def test_what_a_family_cannot_draw_is_named(family: str, y: list, extra: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixtureRegressor(family=family).fit(X, y, **extra)
