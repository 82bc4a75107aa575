"""Mixtures of classifiers."""

from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
import torch

from prob_moe.sklearn import MixtureClassifier
from tests.sklearn.tables import two_lines


def three_classes(n: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Two softmax regressions of which the second column chooses one."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(n, 2))
    slopes = np.where(x[:, 1:] > 0, [[0, 2, -2]], [[0, -2, 1]])
    draws = (slopes * x[:, :1] + generator.gumbel(size=(n, 3))).argmax(1)
    return x, np.array(["red", "green", "blue"])[draws]


def test_one_expert_is_a_multinomial_regression() -> None:
    x, labels = three_classes()
    ours = MixtureClassifier(1).fit(x, labels)
    theirs = sm.MNLogit(np.searchsorted(ours.classes_, labels), sm.add_constant(x)).fit(disp=0, tol=1e-12)
    errors = ours.standard_errors()
    np.testing.assert_allclose(np.vstack([ours.intercept_, ours.coef_[0].T]), theirs.params, rtol=1e-5)
    np.testing.assert_allclose(np.vstack([errors["intercept"], errors["coef"][0].T]), theirs.bse, rtol=1e-5)
    np.testing.assert_allclose(ours.log_likelihood_, theirs.llf, rtol=1e-9)
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict(), rtol=1e-5)


def test_probabilities_are_those_of_the_parameters() -> None:
    x, labels = three_classes()
    ours = MixtureClassifier(2, restarts=4, random_state=0).fit(x, labels)
    logits = np.einsum("kcp,np->nkc", ours.coef_, x) + ours.intercept_
    classes = torch.from_numpy(np.concatenate([np.zeros((len(x), 2, 1)), logits], -1)).softmax(-1)
    router = torch.from_numpy(x @ ours.router_coef_.T + ours.router_intercept_).softmax(-1)
    probabilities = (router.unsqueeze(-1) * classes).sum(1).numpy()
    np.testing.assert_allclose(ours.predict_proba(x), probabilities, rtol=1e-6)
    chosen = np.searchsorted(ours.classes_, labels)
    rows = np.log(probabilities[np.arange(len(x)), chosen])
    np.testing.assert_allclose(ours.log_likelihood(x, labels), rows, rtol=1e-6)
    np.testing.assert_allclose(ours.log_likelihood_, rows.sum())
    assert ours.log_likelihood_ > MixtureClassifier(1).fit(x, labels).log_likelihood_ + 10
    joint = router.numpy() * classes.numpy()[np.arange(len(x)), :, chosen]
    np.testing.assert_allclose(ours.responsibilities(x, labels), joint / joint.sum(1, keepdims=True), atol=1e-6)
    assert "class green against blue" in ours.summary()


def test_classes_that_a_column_separates() -> None:
    x = np.linspace(-1, 1, 40)[:, None]
    ours = MixtureClassifier(2, random_state=0).fit(x, x[:, 0] > 0)
    assert ours.score(x, x[:, 0] > 0) == 1
    assert np.isfinite(ours.parameters_).all()
    assert -1e-3 < ours.log_likelihood_ < 0


@pytest.mark.parametrize("kind", [str, object])
def test_labels_survive_a_file(kind: type, tmp_path: Path) -> None:
    x, labels = three_classes(40)
    fitted = MixtureClassifier(restarts=1, random_state=0).fit(x, labels.astype(kind))
    fitted.save(tmp_path / "file")
    loaded = MixtureClassifier.load(tmp_path / "file")
    np.testing.assert_array_equal(loaded.predict(x), fitted.predict(x))
    assert loaded.predict(x).dtype == fitted.predict(x).dtype


def test_wrong_labels_are_named() -> None:
    x, labels = three_classes(30)
    with pytest.raises(ValueError, match="y must have at least two classes, but has one class, 'red'"):
        MixtureClassifier().fit(x, labels, labels == "red")
    fitted = MixtureClassifier(restarts=1, random_state=0).fit(x, labels)
    with pytest.raises(ValueError, match="y has class 'pink' in row 2, which was not there in fit"):
        fitted.log_likelihood(x[:3], ["red", "blue", "pink"])
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        MixtureClassifier().fit(*two_lines(20))
