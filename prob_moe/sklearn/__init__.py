"""
Mixtures of experts as scikit-learn estimators, for tables; needs the extra ``prob_moe[sklearn]``.

:class:`MixtureRegressor` and :class:`MixtureClassifier` fit by exact maximum likelihood: what statisticians call
mixtures of regressions with concomitant variables.
"""

try:
    import sklearn as _sklearn  # noqa: F401
except ImportError as _error:
    raise ImportError("prob_moe.sklearn needs scikit-learn: pip install 'prob_moe[sklearn]'") from _error

from prob_moe.sklearn.base import FloorWarning
from prob_moe.sklearn.classifier import MixtureClassifier
from prob_moe.sklearn.regressor import MixtureRegressor
from prob_moe.sklearn.selection import (
    RowWarning,
    Selection,
    log_likelihood_scorer,
    rows_far_off,
    select_num_experts,
)

__all__ = [
    "FloorWarning",
    "MixtureClassifier",
    "MixtureRegressor",
    "RowWarning",
    "Selection",
    "log_likelihood_scorer",
    "rows_far_off",
    "select_num_experts",
]
