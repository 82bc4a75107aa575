"""Mixtures of classifiers."""

from typing import Any

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from prob_moe.sklearn.arguments import frequencies, unit_numbers
from prob_moe.sklearn.base import MixtureEstimator
from prob_moe.sklearn.families.classes import Classes
from prob_moe.sklearn.table import Floats


class MixtureClassifier(ClassifierMixin, MixtureEstimator):
    r"""
    A mixture of k softmax regressions, whose weights depend on the columns of X:

    .. math::
        P(y = c \mid x) = \sum_j \pi_j(x)\, \mathrm{softmax}_c(b_j + B_j x),\qquad
        \pi(x) = \mathrm{softmax}_j(a_j + x^\top \gamma_j),\quad a_1 = 0,\ \gamma_1 = 0.

    Fitted as :class:`MixtureRegressor` is. There is no floor, as probabilities have an upper bound.

    :param num_experts: k.
    :param experts: "linear", or "mlp": one hidden layer of tanh units.
    :param router: "linear", "constant" where the weights do not depend on X, or "mlp".
    :param expert_columns: names or places of the columns that experts see; None for all of them.
    :param router_columns: the same for the router.
    :param num_selected: m, from 2 to k: train on the mixture bound with m experts for every row.
    :param objective: "marginal", the exact likelihood; "bound", the mixture bound, with ``num_selected`` experts or 2;
        "auto", the bound where ``num_selected`` is given.
    :param restarts: number of starts; None for 20, or 40,000 / n where there are more than 2000 distinct rows, but at
        least 8. Of networks that many fits, None for one.
    :param hidden_features: of networks with a hidden layer; this and what follows counts for networks and the bound.
    :param num_epochs: passes over the rows; None for 1000 steps.
    :param batch_size: rows of a step.
    :param learning_rate: of Adam.
    :param validation_fraction: of the distinct rows that are set aside where there are at least 30, to keep the best
        parameters on the way; 0 for none.
    :param random_state: of the starts.

    Attributes as those of :class:`MixtureRegressor`, but ``coef_`` (k, C - 1, p) and ``intercept_`` (k, C - 1), which
    are relative to the first of the C classes ``classes_``, and there is no scale. In ``parameters_`` every expert has
    intercept and coefficients class by class.

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 200)
    >>> labels = np.where(np.abs(x) < 0.5, "inner", "outer")
    >>> mixture = MixtureClassifier(2, random_state=0).fit(x[:, None], labels)
    >>> mixture.score(x[:, None], labels)
    1.0
    """

    _restarts = 20

    def __init__(
        self,
        num_experts: int = 2,
        *,
        experts: str = "linear",
        router: str = "linear",
        expert_columns: Any = None,
        router_columns: Any = None,
        num_selected: int | None = None,
        objective: str = "auto",
        restarts: int | None = None,
        hidden_features: int = 32,
        num_epochs: int | None = None,
        batch_size: int = 256,
        learning_rate: float = 0.01,
        validation_fraction: float = 0.1,
        random_state: Any = None,
    ) -> None:
        self.num_experts = num_experts
        self.experts = experts
        self.router = router
        self.expert_columns = expert_columns
        self.router_columns = router_columns
        self.num_selected = num_selected
        self.objective = objective
        self.restarts = restarts
        self.hidden_features = hidden_features
        self.num_epochs = num_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, units: Any = None) -> "MixtureClassifier":
        """
        :param X: (n, columns).
        :param y: labels, (n,).
        :param sample_weight: how often every row counts, (n,); None for once.
        :param units: a name for every row; rows of the same name share their expert. The router's columns must not vary
            within a unit.
        :returns: the estimator itself.
        :raises ValueError: an option, X, y or a weight is not what it has to be.
        """
        self._check_options()
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        weights = frequencies(sample_weight, X)
        self.classes_ = np.unique(y[weights > 0])
        if len(self.classes_) < 2:
            raise ValueError(f"y must have at least two classes, but has one class, {self.classes_.tolist()[0]!r}")
        target = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1).astype(np.float64)
        family = Classes(len(self.classes_) - 1)
        self._fit_table(X, target[np.newaxis], weights, family, None, unit_numbers(units, len(X)))
        return self

    def predict_proba(self, X: Any) -> Floats:
        """:returns: probabilities of the classes, (n, C)."""
        X, mixture = self._validated(X), self.mixture_
        each = Classes(mixture.num_predictors).probabilities(mixture.predictors(X))
        return (mixture.log_router(X).exp() * each).sum(1).mT.numpy()

    def predict(self, X: Any) -> np.ndarray:
        """:returns: the most probable class, (n,)."""
        chosen = self.predict_proba(X).argmax(1)
        return self.classes_[chosen]

    def log_likelihood(self, X: Any, y: Any) -> Floats:
        """:returns: log P(y | x) of every row, nats, (n,)."""
        return self._joint(X, y).logsumexp(0).numpy()

    def responsibilities(self, X: Any, y: Any = None) -> Floats:
        """:returns: probabilities of the experts given x, or given x and y, (n, k)."""
        if y is None:
            return self._router(X)
        return self._joint(X, y).softmax(0).mT.numpy()

    def _joint(self, X: Any, y: Any) -> Tensor:
        check_is_fitted(self, "mixture_")
        X, y = validate_data(self, X, y, reset=False, dtype=np.float64)
        place = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        unknown = self.classes_[place] != y
        if unknown.any():
            row = int(np.argmax(unknown))
            raise ValueError(f"y has class {y.tolist()[row]!r} in row {row}, which was not there in fit")
        return self._log_joint(X, place[np.newaxis].astype(np.float64))

    def _predictors(self, j: int) -> list[tuple[list[str], Any]]:
        return [
            ([f"  class {label} against {self.classes_[0]}"], (j, place))
            for place, label in enumerate(self.classes_[1:])
        ]
