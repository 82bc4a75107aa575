"""Which mixture to choose: by held-out log-likelihood, or by an information criterion."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

from prob_moe.sklearn.arguments import check_choice, check_count
from prob_moe.sklearn.base import MixtureEstimator
from prob_moe.sklearn.table import Floats

#: Rows are out of range whose log-likelihood is so many interquartile ranges, of at least ``LEAST`` nats, below the
#: median; they are named where they lower the mean by more than ``LOSS`` nats.
RANGES, LEAST, LOSS = 20, 0.5, 0.1

#: Rows that a warning names.
NAMED = 5


class RowWarning(UserWarning):
    """A mean of log-likelihoods is decided by a few rows far off."""


def rows_far_off(log_likelihoods: Floats) -> np.ndarray:
    """
    :param log_likelihoods: of rows, nats, (n,).
    :returns: the rows that decide their mean: those more than 20 interquartile ranges below the median, if they lower
        the mean by more than 0.1 nats; the worst one first.

    >>> rows_far_off(np.array([-1.0, -1.2, -0.8, -480.0, -1.1]))
    array([3])
    """
    low, median, high = np.quantile(log_likelihoods, [0.25, 0.5, 0.75])
    far = log_likelihoods < median - RANGES * max(high - low, LEAST)
    if not far.any() or log_likelihoods[~far].mean() - log_likelihoods.mean() <= LOSS:
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(log_likelihoods, kind="stable")
    return order[: int(far.sum())]


def words_on_rows(estimator: Any, log_likelihoods: Floats, rows: np.ndarray, names: Sequence[int] | None = None) -> str:
    """
    :param estimator: by which they are judged.
    :param rows: that :func:`rows_far_off` found.
    :param names: of these rows; None for their numbers, counted from 0.
    :returns: one line on them.
    """
    advice = ", or take family='student'" if getattr(estimator, "family", None) == "gaussian" else ""
    rest, named = np.delete(log_likelihoods, rows), rows if names is None else names
    few = ", ".join(f"{name} ({log_likelihoods[row]:.4g})" for row, name in zip(rows[:NAMED], named))
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return (
        f"the mean log-likelihood, {log_likelihoods.mean():.4g} nats, is decided by row {few}{more}; without, it is "
        f"{rest.mean():.4g}: look at these rows{advice}"
    )


def log_likelihood_scorer(estimator: Any, X: Any, y: Any, **arguments: Any) -> float:
    """
    For ``scoring`` in :class:`sklearn.model_selection.GridSearchCV` and the like.

    :param arguments: of the estimator's ``log_likelihood``: offset, trials.
    :returns: the mean log-likelihood of a row, nats. A :class:`RowWarning` names the rows, counted from 0, that ruin
        it.

    >>> from prob_moe.sklearn import MixtureRegressor
    >>> x = np.linspace(0, 1, 50)[:, None]
    >>> y = np.sin(30 * x[:, 0])
    >>> float(round(log_likelihood_scorer(MixtureRegressor(1).fit(x, y), x, y), 3))
    -1.067
    """
    each = estimator.log_likelihood(X, y, **arguments)
    rows = rows_far_off(each)
    if len(rows):
        warnings.warn(words_on_rows(estimator, each, rows), RowWarning, stacklevel=2)
    return float(each.mean())


@dataclass(frozen=True)
class Selection:
    """
    :param criterion: by which was chosen.
    :param num_experts: the candidates, (c,).
    :param values: of the criterion, (c,): of "log_likelihood" the larger the better, of the others the smaller.
    :param errors: standard errors of the values over the folds, (c,); nan of information criteria.
    :param best: the best candidate.
    :param estimator: with the best number of experts, fitted to all rows.
    """

    criterion: str
    num_experts: np.ndarray
    values: Floats
    errors: Floats
    best: int
    estimator: MixtureEstimator

    def plot(self, axes: Any = None) -> Any:
        """
        Draw the criterion against the number of experts; needs matplotlib.

        :param axes: of matplotlib; None for a new figure.
        :returns: the axes.
        """
        from matplotlib import pyplot as plt

        axes = plt.subplots(layout="constrained")[1] if axes is None else axes
        held_out = self.criterion == "log_likelihood"
        errors = self.errors if held_out else None
        axes.errorbar(
            self.num_experts, self.values, errors, color="0.2", marker="o", markerfacecolor="white", capsize=3
        )
        chosen = self.num_experts == self.best
        axes.plot(
            self.num_experts[chosen], self.values[chosen], "o", color="0.2", markersize=9, label=f"{self.best} chosen"
        )
        axes.set_xticks(self.num_experts)
        unit = "held-out log-likelihood (nats per row)" if held_out else f"{self.criterion.upper()} (less is better)"
        axes.set(xlabel="number of experts", ylabel=unit)
        axes.legend(frameon=False)
        return axes


def select_num_experts(
    estimator: MixtureEstimator,
    X: Any,
    y: Any,
    num_experts: Iterable[int] = (1, 2, 3, 4),
    criterion: str = "log_likelihood",
    *,
    cv: Any = 5,
    **fit_arguments: Any,
) -> Selection:
    """
    Fit mixtures of several sizes and choose one.

    :param estimator: a mixture with all other options; it is not changed.
    :param num_experts: the candidates.
    :param criterion: "log_likelihood", the largest mean over folds of what :func:`log_likelihood_scorer` gives; or
        "bic", "aic" or "icl" of exact fits, the smallest. Where experts have scales, an expert on a line through a few
        rows raises the likelihood by more than these criteria charge for it: on small tables of numbers they favour
        too many experts, which held-out rows do not.
    :param cv: folds, as everywhere in scikit-learn; for "log_likelihood".
    :param fit_arguments: of ``fit``: sample_weight, offset, trials, units; for information criteria.
    :returns: the values of all candidates and the best mixture.
    :raises ValueError: there is no candidate or no such criterion, or a mixture of networks has no such criterion.

    >>> from prob_moe.sklearn import MixtureRegressor
    >>> x = np.linspace(-1, 1, 60)
    >>> y = np.where(x < 0, 1 + x, 2 - 3 * x) + 0.1 * np.sin(1000 * x)
    >>> estimator = MixtureRegressor(family="poisson", restarts=8, random_state=0)
    >>> select_num_experts(estimator, x[:, None], np.exp(y).round(), range(1, 4), "bic").best
    2
    """
    check_choice("criterion", criterion, ["bic", "aic", "icl", "log_likelihood"])
    candidates = [check_count("num_experts", each) for each in num_experts]
    if not candidates:
        raise ValueError("num_experts must have at least one candidate, but is empty")
    values, errors, fits = [], [], []
    for each in candidates:
        mixture = clone(estimator).set_params(num_experts=each)
        if criterion == "log_likelihood":
            scores = cross_val_score(mixture, X, y, scoring=log_likelihood_scorer, cv=cv, error_score="raise")
            values.append(float(scores.mean()))
            errors.append(float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else np.nan)
            continue
        mixture.fit(X, y, **fit_arguments)
        if not hasattr(mixture, "bic_"):
            raise ValueError(f"criterion={criterion!r} is for exact fits; use criterion='log_likelihood' for networks")
        values.append(getattr(mixture, f"{criterion}_"))
        errors.append(np.nan)
        fits.append(mixture)
    place = int(np.argmax(values) if criterion == "log_likelihood" else np.argmin(values))
    best = candidates[place]
    chosen = fits[place] if fits else clone(estimator).set_params(num_experts=best).fit(X, y, **fit_arguments)
    return Selection(criterion, np.array(candidates), np.array(values), np.array(errors), best, chosen)
