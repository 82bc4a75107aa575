"""What estimators of mixtures have in common: from X and y to a maximum, and what follows from it."""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from prob_moe.sklearn.arguments import check_choice, check_count, column_places
from prob_moe.sklearn.errors import Units, covariances, in_units, shares
from prob_moe.sklearn.families import Family
from prob_moe.sklearn.fitted import FittedMixture
from prob_moe.sklearn.problem import Problem
from prob_moe.sklearn.saving import SavedEstimator
from prob_moe.sklearn.search import Maximum, find_maximum, one_expert_floors
from prob_moe.sklearn.summary import SummarisedEstimator
from prob_moe.sklearn.table import Floats, distinct_rows, distinct_units, standard_of

#: Tables of more distinct rows get fewer starts, in proportion, unless told otherwise.
ROWS = 2000


class FloorWarning(UserWarning):
    """The likelihood is higher where an expert has next to no spread and describes a few rows exactly."""


class MixtureEstimator(SavedEstimator, SummarisedEstimator):
    """Finds the maximum, orders the experts, and has their attributes; what y is, subclasses know."""

    mixture_: FittedMixture
    #: Starts unless told otherwise.
    _restarts: int = 200

    def _check_options(self) -> None:
        check_count("num_experts", self.num_experts)
        check_choice("experts", self.experts, ["linear"])
        check_choice("router", self.router, ["linear", "constant"])
        if self.restarts is not None:
            check_count("restarts", self.restarts)

    def _fit_table(
        self, x: Floats, target: Floats, weights: Floats, family: Family, offset: Floats | None, units: Any
    ) -> None:
        """
        Fit, and set all attributes.

        :param target: y in numbers that the family understands, and what else it needs, (t, n).
        :param units: of every row, numbered, (n,); None where each row is one by itself.
        """
        names = getattr(self, "feature_names_in_", None)
        expert_places = column_places("expert_columns", self.expert_columns, x.shape[1], names)
        router_places = column_places("router_columns", self.router_columns, x.shape[1], names)
        if self.router == "constant":
            router_places = router_places[:0]
        used, num_rows = np.union1d(expert_places, router_places), len(x)
        rows = np.column_stack([target.T, np.zeros(num_rows) if offset is None else offset, x[:, used]])
        if units is None:
            rows, weights = distinct_rows(rows, weights)
        else:
            rows, weights, units = distinct_units(rows, weights, units)
        target, offset, x = rows[:, : len(target)].T, rows[:, len(target)], np.zeros((len(rows), x.shape[1]))
        x[:, used] = rows[:, len(target) + 1 :]
        independent = len(rows) if units is None else int(units[-1]) + 1
        if self.num_experts > independent:
            what = "rows" if units is None else "units"
            raise ValueError(
                f"num_experts={self.num_experts} must be at most the number of distinct {what}, but "
                f"n_samples={num_rows}, of which {independent} are distinct and have weight"
            )
        first = np.arange(len(rows)) if units is None else np.flatnonzero(np.diff(units, prepend=-1))
        if units is not None:
            self._check_router(x[:, router_places], first[units], router_places, names)
        experts = standard_of(x[:, expert_places], weights)
        router = standard_of(x[:, router_places], weights)
        self._warn_of_constants(used[~standard_of(x[:, used], weights).varies], names)
        standard = standard_of(target[:1].T, weights)
        centre, scale = (float(standard.centre[0]), float(standard.scale[0])) if family.in_units_of_y else (0.0, 1.0)
        low, high = torch.tensor([*zip(*family.bounds)] or [[], []], dtype=torch.float64)
        alone = np.ones(independent)
        problem = Problem(
            family,
            self.num_experts,
            torch.from_numpy(experts.design(x[:, expert_places])),
            torch.from_numpy(router.design(x[first][:, router_places])),
            torch.from_numpy(np.vstack([(target[:1] - centre) / scale, target[1:]])),
            torch.from_numpy(offset / scale),
            torch.from_numpy(np.ones_like(weights) if units is None else weights),
            torch.from_numpy(weights if units is None else alone),
            None if units is None else torch.from_numpy(units),
            low,
            high,
        )
        problem = replace(problem, floors=one_expert_floors(problem))
        restarts = self.restarts or max(8, min(self._restarts, self._restarts * ROWS // len(rows)))
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

    def _check_router(self, columns: Floats, first: np.ndarray, places: np.ndarray, names: Any) -> None:
        varying = (columns != columns[first]).any(0)
        if varying.any():
            column = _name(places[int(np.argmax(varying))], names)
            raise ValueError(
                f"units: column {column} varies within a unit, whose rows share their expert; give router_columns that "
                "do not, or router='constant'"
            )

    def _warn_of_constants(self, places: np.ndarray, names: Any) -> None:
        if len(places):
            words = ", ".join(_name(place, names) for place in places)
            warnings.warn(f"X is constant in column {words}: its coefficients are 0", UserWarning, stacklevel=4)

    def _set_attributes(self, maximum: Maximum, units: Units) -> None:
        problem = maximum.problem
        total, size = float(problem.unit_weights.sum()), problem.layout.size
        nats = float(problem.row_frequencies.sum() * np.log(self.mixture_.y_scale))
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

    def _set_parameters(self) -> None:
        blocks = self._blocks(self.parameters_)
        self.coef_, self.intercept_ = blocks["coef"], blocks["intercept"]
        self.router_coef_, self.router_intercept_ = blocks["router_coef"], blocks["router_intercept"]
        if "scale" in blocks:
            self.scale_ = np.exp(blocks["scale"])
        if "degrees_of_freedom" in blocks:
            self.degrees_of_freedom_ = np.exp(blocks["degrees_of_freedom"])

    def _blocks(self, vector: Floats) -> dict[str, Floats]:
        """A vector in the order of ``parameters_``, by names of attributes; dispersions are logarithms."""
        mixture = self.mixture_
        k, m, d = mixture.num_experts, mixture.num_predictors, mixture.family.num_dispersions
        p, q = len(mixture.expert_places) + 1, len(mixture.router_places) + 1
        experts = vector[: k * (m * p + d)].reshape(k, m * p + d)
        location = experts[:, : m * p].reshape(k, m, p)
        if not mixture.family.is_softmax:
            location = location[:, 0]
        router = np.vstack([np.zeros((1, q)), vector[k * (m * p + d) :].reshape(k - 1, q)])
        blocks = {
            "intercept": location[..., 0],
            "coef": location[..., 1:],
            "router_intercept": router[:, 0],
            "router_coef": router[:, 1:],
        }
        return blocks | dict(zip(["scale", "degrees_of_freedom"], experts[:, m * p :].T))

    def standard_errors(self, kind: str = "hessian") -> dict[str, Floats]:
        """
        :param kind: "hessian" for those of the observed information, "hc0" for White's, which allow for a model that is
            not true.
        :returns: arrays by the names of the attributes without underscore, "coef", "intercept", "scale", "router_coef"
            and so on, and of their shapes; the router's of the first expert, the reference, are 0.
        :raises ValueError: there is no such kind.
        """
        check_choice("kind", kind, ["hessian", "hc0"])
        covariance = self.covariance_ if kind == "hessian" else self.robust_covariance_
        blocks = self._blocks(np.sqrt(np.diagonal(covariance)))
        for name in ("scale", "degrees_of_freedom"):
            if name in blocks:
                blocks[name] = blocks[name] * getattr(self, name + "_")
        return blocks

    def _validated(self, X: Any) -> Floats:
        check_is_fitted(self, "mixture_")
        return validate_data(self, X, reset=False, dtype=np.float64)

    def _router(self, X: Any) -> Floats:
        """Probabilities of the experts given x, (n, k)."""
        X = self._validated(X)
        return self.mixture_.log_router(X).exp().mT.numpy()

    def _log_joint(self, x: Floats, target: Floats, offset: Floats | None = None) -> Tensor:
        """log of the probability of every expert and of the density of y, (k, n)."""
        return self.mixture_.log_router(x) + self.mixture_.log_likelihoods(x, target, offset)


def _name(place: int, names: Any) -> str:
    return repr(str(names[place])) if names is not None else str(place)
