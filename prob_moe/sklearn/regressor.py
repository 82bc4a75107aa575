"""Mixtures of regressions."""

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from prob_moe.sklearn.arguments import check_choice, check_count, check_fraction, frequencies
from prob_moe.sklearn.base import MixtureEstimator
from prob_moe.sklearn.families import FAMILIES
from prob_moe.sklearn.quantiles import mixture_quantile
from prob_moe.sklearn.table import Floats


class MixtureRegressor(RegressorMixin, MixtureEstimator):
    r"""
    A mixture of k linear regressions, whose weights depend on the columns of X:

    .. math::
        p(y \mid x) = \sum_j \pi_j(x)\, \mathrm{N}(y;\ b_j + x^\top \beta_j,\ \sigma_j^2),\qquad
        \pi(x) = \mathrm{softmax}_j(a_j + x^\top \gamma_j),\quad a_1 = 0,\ \gamma_1 = 0.

    Every expert learns coefficients and a scale of its own. Statisticians call the columns in π concomitant variables.

    ``fit`` maximises the exact likelihood, from many starts at once: some steps of expectation maximisation from each,
    then Newton's method with the exact Hessian. Half of the starts are random responsibilities; in the other half one
    expert has as many random rows as it has coefficients and the rows nearest to them. The likelihood of such a mixture
    has no upper bound, as an expert can describe a few rows exactly; so no scale gets below 1/1000 of the residual
    standard deviation of one regression. The best maximum off this floor is returned; that there is a better one on it
    is said by a :class:`FloorWarning`. A ridge on the standardised coefficients that costs at most 1e-4 nat makes the
    answer unique where there are more columns than rows, or where columns depend on each other.

    :param num_experts: k.
    :param family: the law of y given an expert: "gaussian".
    :param experts: "linear".
    :param router: "linear", or "constant" where the weights do not depend on X.
    :param expert_columns: names or places of the columns that experts see; None for all of them.
    :param router_columns: the same for the router.
    :param restarts: number of starts; None for 200, or 400,000 / n where there are more than 2000 distinct rows, but at
        least 8.
    :param random_state: of the starts.

    Attributes, experts in the order of decreasing share:

    * ``coef_`` (k, p), ``intercept_`` (k,), ``scale_`` (k,): in the units of X and y.
    * ``router_coef_`` (k, q), ``router_intercept_`` (k,): relative to the first expert, whose are 0.
    * ``shares_`` (k,): mean probabilities of the experts.
    * ``log_likelihood_`` (nats), ``aic_``, ``bic_``, ``icl_``: the last three are better the smaller they are;
      ``icl_`` is ``bic_`` plus twice the entropy of the responsibilities (Biernacki, Celeux & Govaert 2000).
    * ``parameters_`` (D,): expert by expert its intercept, coefficients and logarithm of the scale; then for every
      expert but the first the router's intercept and coefficients. ``covariance_`` (D, D) is the inverse of the
      observed information, ``robust_covariance_`` White's estimate HC0. What the table does not determine is nan.
    * ``floor_log_likelihood_``: the best maximum on the floor, -inf if there was none; ``on_floor_``: whether the
      returned one is; ``converged_``.

    >>> import numpy as np
    >>> x = np.linspace(-1, 1, 200)
    >>> y = np.where(x < 0, 1 + x, 2 - 3 * x) + 0.1 * np.sin(1000 * x)
    >>> mixture = MixtureRegressor(2, restarts=20, random_state=0).fit(x[:, None], y)
    >>> mixture.coef_.round(1).ravel()
    array([-3.,  1.])
    """

    def __init__(
        self,
        num_experts: int = 2,
        *,
        family: str = "gaussian",
        experts: str = "linear",
        router: str = "linear",
        expert_columns: Any = None,
        router_columns: Any = None,
        restarts: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.num_experts = num_experts
        self.family = family
        self.experts = experts
        self.router = router
        self.expert_columns = expert_columns
        self.router_columns = router_columns
        self.restarts = restarts
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "MixtureRegressor":
        """
        :param X: (n, columns).
        :param y: (n,).
        :param sample_weight: how often every row counts, (n,); None for once.
        :returns: the estimator itself.
        :raises ValueError: an option, X, y or a weight is not what it has to be.
        """
        self._check_options()
        check_choice("family", self.family, list(FAMILIES))
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        weights = frequencies(sample_weight, X)
        self._fit_table(X, y.astype(np.float64), weights, FAMILIES[self.family]())
        return self

    def _set_parameters(self) -> None:
        blocks = self._blocks(self.parameters_)
        self.coef_, self.intercept_ = blocks["coef"][:, 0], blocks["intercept"][:, 0]
        self.router_coef_, self.router_intercept_ = blocks["router_coef"], blocks["router_intercept"]
        self.scale_ = np.exp(blocks["dispersion"][:, 0])

    def standard_errors(self, kind: str = "hessian") -> dict[str, Floats]:
        """
        :param kind: "hessian" for those of the observed information, "hc0" for White's, which allow for a model that is
            not true.
        :returns: arrays by the names "coef", "intercept", "scale", "router_coef" and "router_intercept", of the
            attributes' shapes; the router's of the first expert, the reference, are 0.
        :raises ValueError: there is no such kind.
        """
        check_choice("kind", kind, ["hessian", "hc0"])
        covariance = self.covariance_ if kind == "hessian" else self.robust_covariance_
        blocks = self._blocks(np.sqrt(np.diagonal(covariance)))
        return {
            "coef": blocks["coef"][:, 0],
            "intercept": blocks["intercept"][:, 0],
            "scale": blocks["dispersion"][:, 0] * self.scale_,
            "router_coef": blocks["router_coef"],
            "router_intercept": blocks["router_intercept"],
        }

    def predict(self, X: Any) -> Floats:
        """:returns: the mean of y, (n,)."""
        X, mixture = self._validated(X), self.mixture_
        means = mixture.family.mean(mixture.predictors(X), mixture.dispersions())
        return mixture.y_centre + mixture.y_scale * (mixture.log_router(X).exp() * means).sum(0).numpy()

    def predict_interval(self, X: Any, coverage: float = 0.9) -> Floats:
        """
        Quantiles of the mixture, with the same probability below as above; the parameters are taken for known.

        :returns: (n, 2).
        :raises ValueError: the coverage is not between 0 and 1.
        """
        tail = (1 - check_fraction("coverage", coverage)) / 2
        X, mixture = self._validated(X), self.mixture_
        log_p, predictors, dispersions = mixture.log_router(X), mixture.predictors(X), mixture.dispersions()
        ends = [
            mixture_quantile(mixture.family, probability, log_p, predictors, dispersions).numpy()
            for probability in (tail, 1 - tail)
        ]
        return mixture.y_centre + mixture.y_scale * np.column_stack(ends)

    def sample(self, X: Any, *, num_samples: int | None = None, random_state: Any = None) -> Floats:
        """
        Draws of y.

        :param num_samples: draws for every row; None for one without a dimension.
        :param random_state: as everywhere in scikit-learn.
        :returns: (n,), or (num_samples, n).
        :raises ValueError: ``num_samples`` is no positive int.
        """
        count = 1 if num_samples is None else check_count("num_samples", num_samples)
        X, mixture, generator = self._validated(X), self.mixture_, check_random_state(random_state)
        p = mixture.log_router(X).exp().numpy().cumsum(0)
        predictors, dispersions = mixture.predictors(X), mixture.dispersions()
        rows, draws = np.arange(len(X)), []
        for _ in range(count):
            expert = (generator.uniform(size=len(X)) * p[-1] >= p).sum(0)
            draws.append(mixture.family.sample(predictors[:, expert, rows], dispersions[:, expert, 0], generator))
        result = mixture.y_centre + mixture.y_scale * np.stack(draws)
        return result[0] if num_samples is None else result

    def log_likelihood(self, X: Any, y: Any) -> Floats:
        """:returns: log p(y | x) of every row, nats, (n,)."""
        X, y = self._validated_with(X, y)
        return (self.mixture_.log_router(X) + self.mixture_.log_likelihoods(X, y)).logsumexp(0).numpy()

    def responsibilities(self, X: Any, y: Any = None) -> Floats:
        """:returns: probabilities of the experts given x, or given x and y, (n, k)."""
        if y is None:
            return self.mixture_.log_router(self._validated(X)).exp().mT.numpy()
        X, y = self._validated_with(X, y)
        return (self.mixture_.log_router(X) + self.mixture_.log_likelihoods(X, y)).softmax(0).mT.numpy()

    def _validated_with(self, X: Any, y: Any) -> tuple[Floats, Floats]:
        check_is_fitted(self, "mixture_")
        X, y = validate_data(self, X, y, reset=False, dtype=np.float64, y_numeric=True)
        return X, y.astype(np.float64)
