"""What estimators of mixtures have in common: from X and y to a maximum, and what follows from it."""

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from prob_moe.sklearn.arguments import check_choice, check_count, column_places
from prob_moe.sklearn.errors import Units, covariances, in_units, shares
from prob_moe.sklearn.families import Family
from prob_moe.sklearn.fitted import FittedMixture
from prob_moe.sklearn.problem import Problem
from prob_moe.sklearn.saving import SavedEstimator
from prob_moe.sklearn.search import Maximum, find_maximum
from prob_moe.sklearn.summary import SummarisedEstimator
from prob_moe.sklearn.table import Floats, distinct_rows, standard_of

#: Starts for tables up to so many distinct rows; larger ones get fewer, in proportion, unless told otherwise.
RESTARTS, ROWS = 200, 2000


class FloorWarning(UserWarning):
    """The likelihood is higher where an expert has next to no spread and describes a few rows exactly."""


class MixtureEstimator(SavedEstimator, SummarisedEstimator):
    """Finds the maximum, orders the experts, and has their attributes; what y is, subclasses know."""

    mixture_: FittedMixture

    def _check_options(self) -> None:
        check_count("num_experts", self.num_experts)
        check_choice("experts", self.experts, ["linear"])
        check_choice("router", self.router, ["linear", "constant"])
        if self.restarts is not None:
            check_count("restarts", self.restarts)

    def _fit_table(self, x: Floats, y: Floats, weights: Floats, family: Family) -> None:
        """Fit, and set all attributes. :param y: numbers that the family understands, (n,)."""
        names = getattr(self, "feature_names_in_", None)
        expert_places = column_places("expert_columns", self.expert_columns, x.shape[1], names)
        router_places = column_places("router_columns", self.router_columns, x.shape[1], names)
        if self.router == "constant":
            router_places = router_places[:0]
        used = np.union1d(expert_places, router_places)
        rows, weights = distinct_rows(np.column_stack([y, x[:, used]]), weights)
        y, seen = rows[:, 0], np.zeros((len(rows), x.shape[1]))
        seen[:, used] = rows[:, 1:]
        if self.num_experts > len(rows):
            raise ValueError(
                f"num_experts={self.num_experts} must be at most the number of distinct rows, "
                f"but n_samples={len(x)}, of which {len(rows)} are distinct and have weight"
            )
        experts, router = (standard_of(seen[:, places], weights) for places in (expert_places, router_places))
        self._warn_of_constants(used[~standard_of(seen[:, used], weights).varies], names)
        target = standard_of(rows[:, :1], weights)
        centre, scale = (float(target.centre[0]), float(target.scale[0])) if family.in_units_of_y else (0.0, 1.0)
        columns = torch.from_numpy(experts.design(seen[:, expert_places]))
        standardised, frequencies = torch.from_numpy((y - centre) / scale), torch.from_numpy(weights)
        problem = Problem(
            family,
            self.num_experts,
            columns,
            torch.from_numpy(router.design(seen[:, router_places])),
            standardised.unsqueeze(0),
            torch.zeros_like(standardised),
            torch.ones_like(standardised),
            frequencies,
            None,
            family.floors(columns, standardised, frequencies),
        )
        restarts = self.restarts or max(8, min(RESTARTS, RESTARTS * ROWS // len(rows)))
        maximum = find_maximum(problem, restarts, check_random_state(self.random_state))
        order = shares(maximum).argsort(descending=True, stable=True)
        maximum = maximum._replace(vector=problem.layout.permuted(maximum.vector.unsqueeze(0), order)[0])
        self.mixture_ = FittedMixture(
            family.name,
            self.num_experts,
            family.num_predictors,
            expert_places,
            router_places,
            experts,
            router,
            centre,
            scale,
            maximum.vector.numpy(),
        )
        self._set_attributes(maximum, Units(maximum, experts, router, centre, scale))

    def _warn_of_constants(self, places: np.ndarray, names: Any) -> None:
        if len(places):
            words = ", ".join(repr(str(names[place])) if names is not None else str(place) for place in places)
            warnings.warn(f"X is constant in column {words}: its coefficients are 0", UserWarning, stacklevel=4)

    def _set_attributes(self, maximum: Maximum, units: Units) -> None:
        problem = maximum.problem
        total, size = float(problem.unit_weights.sum()), problem.layout.size
        nats = total * float(np.log(self.mixture_.y_scale))
        self.log_likelihood_ = maximum.log_likelihood - nats
        self.floor_log_likelihood_ = maximum.floor_log_likelihood - nats
        self.on_floor_, self.converged_ = maximum.on_the_floor, maximum.converged
        self.num_parameters_, self.num_observations_ = size, total
        responsibilities = problem.log_joint(maximum.vector.unsqueeze(0))[0].softmax(0)
        entropy = float(torch.special.entr(responsibilities).sum(0) @ problem.unit_weights)
        self.aic_ = -2 * self.log_likelihood_ + 2 * size
        self.bic_ = -2 * self.log_likelihood_ + float(np.log(total)) * size
        self.icl_ = self.bic_ + 2 * entropy
        self.shares_ = shares(maximum).numpy()
        self.parameters_ = units.vector
        self.covariance_, self.robust_covariance_ = (in_units(each, units.matrix) for each in covariances(maximum))
        self._set_parameters()
        self._warn_of_maximum()

    def _warn_of_maximum(self) -> None:
        if not self.converged_:
            words = f"the search ended before its maximum at log-likelihood {self.log_likelihood_:.6g}; raise restarts"
            warnings.warn(words, ConvergenceWarning, stacklevel=5)
        if self.on_floor_:
            words = "every maximum found lies on the floor of the scales, where an expert describes its rows exactly"
            warnings.warn(words, FloorWarning, stacklevel=5)
        elif self.floor_log_likelihood_ > self.log_likelihood_:
            words = (
                f"a maximum with log-likelihood {self.floor_log_likelihood_:.6g} lies on the floor of the scales, "
                f"where an expert describes a few rows exactly; returned is the best one off it, "
                f"{self.log_likelihood_:.6g}"
            )
            warnings.warn(words, FloorWarning, stacklevel=5)

    def _blocks(self, vector: Floats) -> dict[str, Floats]:
        """A vector in the order of ``parameters_``, by names of attributes."""
        mixture = self.mixture_
        k, m, d = mixture.num_experts, mixture.num_predictors, mixture.family.num_dispersions
        p, q = len(mixture.expert_places) + 1, len(mixture.router_places) + 1
        experts = vector[: k * (m * p + d)].reshape(k, m * p + d)
        location = experts[:, : m * p].reshape(k, m, p)
        router = np.vstack([np.zeros((1, q)), vector[k * (m * p + d) :].reshape(k - 1, q)])
        return {
            "intercept": location[..., 0],
            "coef": location[..., 1:],
            "dispersion": experts[:, m * p :],
            "router_intercept": router[:, 0],
            "router_coef": router[:, 1:],
        }

    def _validated(self, X: Any) -> Floats:
        check_is_fitted(self, "mixture_")
        return validate_data(self, X, reset=False, dtype=np.float64)
