"""What scikit-learn asks of every estimator, and its tools around them."""

import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from prob_moe.sklearn import MixtureClassifier, MixtureRegressor
from tests.sklearn.tables import two_lines

pytestmark = pytest.mark.filterwarnings("ignore::prob_moe.sklearn.FloorWarning")


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([MixtureRegressor(), MixtureClassifier()])
def test_scikit_learn(estimator: object, check: object) -> None:
    check(estimator)


def test_pipelines_and_searches() -> None:
    x, y = two_lines(60)
    pipeline = make_pipeline(StandardScaler(), MixtureRegressor(restarts=4, random_state=0))
    search = GridSearchCV(pipeline, {"mixtureregressor__num_experts": [1, 2]}, cv=2).fit(x, y)
    assert search.best_params_ == {"mixtureregressor__num_experts": 2}
    plain = MixtureRegressor(restarts=4, random_state=0).fit(x, y)
    np.testing.assert_allclose(search.predict(x), plain.predict(x), rtol=1e-4)


def test_columns_by_name_copies_and_pickles() -> None:
    x, y = two_lines(60)
    table = pd.DataFrame(x, columns=["dose", "age"])
    estimator = MixtureRegressor(expert_columns=["age"], router_columns=["dose"], restarts=4, random_state=0)
    fitted = estimator.fit(table, y)
    by_place = MixtureRegressor(expert_columns=[1], router_columns=[0], restarts=4, random_state=0).fit(x, y)
    np.testing.assert_array_equal(fitted.predict(table), by_place.predict(x))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict(table), fitted.predict(table))
    assert clone(fitted).get_params() == fitted.get_params()
    with pytest.raises(ValueError, match="names column 'weight', which X does not have; it has dose, age"):
        MixtureRegressor(expert_columns=["weight"]).fit(table, y)


def test_extra_arguments_can_be_routed() -> None:
    names = {"sample_weight", "offset", "trials", "units"}
    assert names <= set(MixtureRegressor().get_metadata_routing().fit.requests)
    assert {"offset", "trials"} <= set(MixtureRegressor().get_metadata_routing().predict.requests)
    assert {"sample_weight", "units"} <= set(MixtureClassifier().get_metadata_routing().fit.requests)
