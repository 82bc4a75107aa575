"""Mixtures of regressions."""

from typing import Any

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from prob_moe.sklearn.arguments import check_choice, check_count, check_fraction, frequencies, row_numbers, unit_numbers
from prob_moe.sklearn.base import MixtureEstimator
from prob_moe.sklearn.families import REGRESSIONS, Family
from prob_moe.sklearn.quantiles import mixture_quantile
from prob_moe.sklearn.table import Floats


class MixtureRegressor(RegressorMixin, MixtureEstimator):
    r"""
    A mixture of k linear regressions, whose weights depend on the columns of X:

    .. math::
        p(y \mid x) = \sum_j \pi_j(x)\, f(y;\ b_j + x^\top \beta_j,\ \sigma_j),\qquad
        \pi(x) = \mathrm{softmax}_j(a_j + x^\top \gamma_j),\quad a_1 = 0,\ \gamma_1 = 0.

    Every expert learns coefficients of its own, and a scale where the law f has one. Statisticians call the columns in
    π concomitant variables. The laws, by the linear predictor η = b + x'β:

    * "gaussian": normal with mean η and standard deviation σ.
    * "student": η plus σ times a t with degrees of freedom of the expert's own, from 1 to 100, for tables with rows far
      off.
    * "poisson": counts with mean exp(η).
    * "binomial": successes among ``trials``, each with probability 1 / (1 + exp(-η)).
    * "gamma": positive numbers with mean exp(η) and coefficient of variation σ.

    ``fit`` maximises the exact likelihood, from many starts at once: some steps of expectation maximisation from each,
    then Newton's method with the exact Hessian. Half of the starts are random responsibilities; in the other half one
    expert has few rows: as many random ones as it has coefficients and the rows nearest to them, or the best of
    thousands of such sets, which are judged before anything is fitted, beside the best mixture of one expert less. So
    lines through a few rows are found that 200 random starts miss. The likelihood of such a mixture
    has no upper bound, as an expert can describe a few rows exactly; so no scale gets below 1/1000 of that of one
    expert for the whole table. The best maximum off this floor is returned; that there is a better one on it is said by
    a :class:`FloorWarning`. A ridge on the standardised coefficients that costs at most 1e-4 nat makes the answer
    unique where there are more columns than rows, or where columns depend on each other.

    Where the numbers of a table are rounded and the router is constant, many such lines are sharp maxima: then another
    ``random_state`` can still find another one, and more ``restarts`` a better one.

    With an "mlp", or on the mixture bound, router and experts are trained in minibatches instead, by Adam, with a
    normal prior of standard deviation 3 on the weights for standardised columns: no maximum is found there, and there
    are neither coefficients nor standard errors. The bound (:class:`~prob_moe.estimators.TraceMixture_ELBO`) costs m of
    k experts for a row. Where experts are small all of them are better than two, and cost little more.

    :param num_experts: k.
    :param family: the law of y given an expert: "gaussian", "student", "poisson", "binomial" or "gamma".
    :param experts: "linear", or "mlp": one hidden layer of tanh units, which puts out the logarithm of the scale, too.
    :param router: "linear", "constant" where the weights do not depend on X, or "mlp".
    :param expert_columns: names or places of the columns that experts see; None for all of them.
    :param router_columns: the same for the router.
    :param num_selected: m, from 2 to k: train on the mixture bound with m experts for every row.
    :param objective: "marginal", the exact likelihood; "bound", the mixture bound, with ``num_selected`` experts or 2;
        "auto", the bound where ``num_selected`` is given.
    :param restarts: number of starts; None for 200, or 400,000 / n where there are more than 2000 distinct rows, but at
        least 8. Of networks that many fits, None for one.
    :param hidden_features: of networks with a hidden layer; this and what follows counts for networks and the bound.
    :param num_epochs: passes over the rows; None for 1000 steps.
    :param batch_size: rows of a step.
    :param learning_rate: of Adam.
    :param validation_fraction: of the distinct rows that are set aside where there are at least 30, to keep the best
        parameters on the way; 0 for none.
    :param random_state: of the starts.

    Attributes, experts in the order of decreasing share:

    * ``coef_`` (k, p), ``intercept_`` (k,), ``scale_`` (k,): in the units of X and y.
    * ``router_coef_`` (k, q), ``router_intercept_`` (k,): relative to the first expert, whose are 0.
    * ``degrees_of_freedom_`` (k,): of "student".
    * ``shares_`` (k,): mean probabilities of the experts.
    * ``log_likelihood_`` (nats), ``aic_``, ``bic_``, ``icl_``: the last three are better the smaller they are;
      ``icl_`` is ``bic_`` plus twice the entropy of the responsibilities (Biernacki, Celeux & Govaert 2000).
    * ``parameters_`` (D,): expert by expert its intercept, coefficients and logarithm of the scale; then for every
      expert but the first the router's intercept and coefficients. ``covariance_`` (D, D) is the inverse of the
      observed information, ``robust_covariance_`` White's estimate HC0. What the table does not determine is nan.
    * ``restart_log_likelihoods_`` (restarts,): where every start ended, with what the ridge costs.
    * ``floor_log_likelihood_``: the best maximum on the floor, -inf if there was none; ``on_floor_``: whether the
      returned one is; ``converged_``.

    Of networks there are ``shares_``, ``log_likelihood_``, ``num_parameters_``, ``restart_scores_`` (nats per row, of
    the rows set aside if there are any), and ``loss_curve_`` (looks, 3): minus the objective in training and minus the
    log-likelihood of the rows set aside, nats per row, and the epoch.

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
        self.family = family
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

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, offset: Any = None, trials: Any = None, units: Any = None
    ) -> "MixtureRegressor":
        """
        :param X: (n, columns).
        :param y: (n,): numbers; counts for "poisson"; successes for "binomial"; positive numbers for "gamma".
        :param sample_weight: how often every row counts, (n,); None for once.
        :param offset: added to the linear predictor of every expert, (n,) or one number.
        :param trials: for "binomial", (n,) or one number; None for 1.
        :param units: a name for every row; rows of the same name share their expert, as in repeated measurements. The
            router's columns must not vary within a unit.
        :returns: the estimator itself.
        :raises ValueError: an option, X, y or a weight is not what it has to be.
        """
        self._check_options()
        check_choice("family", self.family, list(REGRESSIONS))
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        weights, family = frequencies(sample_weight, X), REGRESSIONS[self.family]()
        target = self._target(family, y, trials)
        self._fit_table(X, target, weights, family, row_numbers("offset", offset, len(X)), unit_numbers(units, len(X)))
        return self

    def predict(self, X: Any, *, offset: Any = None, trials: Any = None) -> Floats:
        """:returns: the mean of y, (n,); for "binomial" the mean number of successes."""
        X, mixture = self._validated(X), self.mixture_
        predictors, dispersions, trials = self._local(X, offset, trials)
        means = mixture.family.mean(predictors, dispersions, trials)
        return mixture.y_centre + mixture.y_scale * (mixture.log_router(X).exp().numpy() * means).sum(0)

    def expert_means(self, X: Any, *, offset: Any = None, trials: Any = None) -> Floats:
        """:returns: the mean of y under every expert alone, (n, k)."""
        X, mixture = self._validated(X), self.mixture_
        means = mixture.family.mean(*self._local(X, offset, trials))
        return (mixture.y_centre + mixture.y_scale * means).T

    def cdf(self, X: Any, y: Any, *, offset: Any = None, trials: Any = None) -> Floats:
        """:returns: the probability that a draw is at most y, (n,)."""
        X, y, mixture = self._validated(X), row_numbers("y", y, len(X)), self.mixture_
        law = mixture.family.law(*self._local(X, offset, trials))
        each = law.cdf((y - mixture.y_centre) / mixture.y_scale)
        return (mixture.log_router(X).exp().numpy() * each).sum(0)

    def predict_interval(self, X: Any, coverage: float = 0.9, *, offset: Any = None, trials: Any = None) -> Floats:
        """
        Quantiles of the mixture, with at most the same probability below as above; the parameters are taken for known.

        :returns: (n, 2).
        :raises ValueError: the coverage is not between 0 and 1.
        """
        tail = (1 - check_fraction("coverage", coverage)) / 2
        X, mixture = self._validated(X), self.mixture_
        law = mixture.family.law(*self._local(X, offset, trials))
        p, discrete = mixture.log_router(X).exp().numpy(), mixture.family.discrete
        ends = [mixture_quantile(law, probability, p, discrete=discrete) for probability in (tail, 1 - tail)]
        return mixture.y_centre + mixture.y_scale * np.column_stack(ends)

    def sample(
        self,
        X: Any,
        *,
        num_samples: int | None = None,
        random_state: Any = None,
        offset: Any = None,
        trials: Any = None,
    ) -> Floats:
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
        predictors, dispersions, trials = self._local(X, offset, trials)
        rows, draws = np.arange(len(X)), []
        for _ in range(count):
            expert = (generator.uniform(size=len(X)) * p[-1] >= p).sum(0)
            law = mixture.family.law(predictors[:, expert, rows], dispersions[:, expert, rows], trials)
            draws.append(law.rvs(random_state=generator))
        result = mixture.y_centre + mixture.y_scale * np.stack(draws)
        return result[0] if num_samples is None else result

    def log_likelihood(self, X: Any, y: Any, *, offset: Any = None, trials: Any = None) -> Floats:
        """:returns: log p(y | x) of every row, nats, (n,)."""
        return self._joint(X, y, offset, trials).logsumexp(0).numpy()

    def responsibilities(self, X: Any, y: Any = None, *, offset: Any = None, trials: Any = None) -> Floats:
        """:returns: probabilities of the experts given x, or given x and y, (n, k)."""
        if y is None:
            return self._router(X)
        return self._joint(X, y, offset, trials).softmax(0).mT.numpy()

    def _joint(self, X: Any, y: Any, offset: Any, trials: Any) -> Tensor:
        check_is_fitted(self, "mixture_")
        X, y = validate_data(self, X, y, reset=False, dtype=np.float64, y_numeric=True)
        return self._log_joint(X, self._target(self.mixture_.family, y, trials), row_numbers("offset", offset, len(X)))

    def _target(self, family: Family, y: Any, trials: Any) -> Floats:
        """What the family needs to know of y, (t, n)."""
        y, trials = y.astype(np.float64), row_numbers("trials", trials, len(y))
        if trials is not None and family.name != "binomial":
            raise ValueError(f"trials are of no use for family={family.name!r}; give them for family='binomial'")
        family.check(y, trials)
        if family.name != "binomial":
            return y[np.newaxis]
        return np.stack([y, np.ones_like(y) if trials is None else trials])

    def _local(self, x: Floats, offset: Any, trials: Any) -> tuple[Floats, Floats, Floats]:
        """Predictors (m, k, n), dispersions (d, k, n) and trials (n,)."""
        given = row_numbers("trials", trials, len(x))
        predictors, dispersions = self.mixture_.local(x, row_numbers("offset", offset, len(x)))
        return predictors.numpy(), dispersions.numpy(), np.ones(len(x)) if given is None else given
