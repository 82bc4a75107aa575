"""What estimators of mixtures have in common: from X and y to a maximum, and what follows from it."""

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from prob_moe.sklearn.arguments import check_choice, check_count, check_fraction, check_positive, column_places
from prob_moe.sklearn.errors import Units, covariances, in_units, shares
from prob_moe.sklearn.families import Family
from prob_moe.sklearn.fitted import Fitted, FittedMixture, FittedNetwork
from prob_moe.sklearn.prepared import Columns, Prepared, prepare
from prob_moe.sklearn.saving import SavedEstimator
from prob_moe.sklearn.search import Maximum, find_maximum
from prob_moe.sklearn.summary import SummarisedEstimator
from prob_moe.sklearn.table import Floats
from prob_moe.sklearn.training import Keeper, Options, train

#: Tables of more distinct rows get fewer starts, in proportion, unless told otherwise.
ROWS = 2000

#: Attributes of exact fits, which others do not have; and the other way round.
EXACT = (
    *("coef_", "intercept_", "scale_", "degrees_of_freedom_", "router_coef_", "router_intercept_", "parameters_"),
    *("covariance_", "robust_covariance_", "aic_", "bic_", "icl_", "restart_log_likelihoods_"),
    *("floor_log_likelihood_", "on_floor_", "converged_"),
)
TRAINED = ("loss_curve_", "restart_scores_")


class FloorWarning(UserWarning):
    """The likelihood is higher where an expert has next to no spread and describes a few rows exactly."""


class MixtureEstimator(SavedEstimator, SummarisedEstimator):
    """Finds the maximum, orders the experts, and has their attributes; what y is, subclasses know."""

    mixture_: Fitted
    #: Where networks are kept while they are trained; of the instance for as long as it is fitted.
    _keeper: Keeper | None = None
    #: Starts unless told otherwise.
    _restarts: int = 200

    def _check_options(self) -> None:
        check_count("num_experts", self.num_experts)
        check_choice("experts", self.experts, ["linear", "mlp"])
        check_choice("router", self.router, ["linear", "constant", "mlp"])
        check_choice("objective", self.objective, ["auto", "marginal", "bound"])
        for name in ("restarts", "num_epochs"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for name in ("hidden_features", "batch_size"):
            check_count(name, getattr(self, name))
        check_positive("learning_rate", self.learning_rate)
        if self.validation_fraction:
            check_fraction("validation_fraction", self.validation_fraction)
        if self.num_selected is not None:
            check_count("num_selected", self.num_selected, min(2, self.num_experts))
            if self.num_selected > self.num_experts:
                raise ValueError(
                    f"num_selected={self.num_selected} must be at most the number of experts, {self.num_experts}"
                )
            if self.objective == "marginal":
                raise ValueError(
                    f"num_selected={self.num_selected} is for the mixture bound, but objective='marginal'; give "
                    "objective='bound' or 'auto', or leave num_selected out"
                )

    @property
    def _selected(self) -> int | None:
        """Experts of a row in training on the mixture bound; None for the exact marginal."""
        bound = self.objective == "bound"
        return min(2, self.num_experts) if bound and self.num_selected is None else self.num_selected

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
        columns = Columns(expert_places, router_places, names)
        prepared = prepare(self.num_experts, family, x, target, weights, offset, units, columns)
        for name in (*EXACT, *TRAINED):
            self.__dict__.pop(name, None)
        if self.experts == "mlp" or self.router == "mlp" or self._selected is not None:
            if units is not None:
                raise ValueError("units are for linear experts, a linear router and the exact marginal; leave them out")
            self._fit_networks(prepared)
        else:
            self._fit_exactly(prepared)

    def _fit_exactly(self, prepared: Prepared) -> None:
        problem = prepared.problem
        restarts = self.restarts or max(8, min(self._restarts, self._restarts * ROWS // len(problem.columns)))
        maximum = find_maximum(problem, restarts, check_random_state(self.random_state))
        order = shares(maximum).argsort(descending=True, stable=True)
        maximum = maximum._replace(vector=problem.layout.permuted(maximum.vector.unsqueeze(0), order)[0])
        self.mixture_ = FittedMixture(**prepared.fitted, vector=maximum.vector.numpy())
        units = Units(maximum, prepared.experts, prepared.router, prepared.centre, prepared.scale)
        self._set_attributes(maximum, units)

    def _fit_networks(self, prepared: Prepared) -> None:
        hidden, router = ({"mlp": self.hidden_features}.get(kind) for kind in (self.experts, self.router))
        sizes = (self.num_epochs, self.batch_size, self.learning_rate, self.validation_fraction or 0.0)
        options, problem = Options(hidden, router, self._selected, *sizes), prepared.problem
        generator = check_random_state(self.random_state)
        fits = [train(problem, options, generator, number, self._keeper) for number in range(self.restarts or 1)]
        best = max(fits, key=lambda each: each.score)
        weights = problem.unit_weights / problem.unit_weights.sum()
        with torch.no_grad():
            each = best.networks.log_router(problem.router_columns).exp() @ weights
            best.networks.permute(each.argsort(descending=True, stable=True))
            rows = best.networks.log_marginal(problem.columns, problem.router_columns, problem.target, problem.offset)
        state = {name: value.detach().numpy() for name, value in best.networks.state_dict().items()}
        self.mixture_ = FittedNetwork(**prepared.fitted, hidden_features=hidden, router_features=router, weights=state)
        self.shares_ = each.sort(descending=True).values.numpy()
        self.num_observations_ = float(problem.unit_weights.sum())
        nats = self.num_observations_ * np.log(prepared.scale)
        self.log_likelihood_ = float(rows @ problem.unit_weights) - nats
        self.num_parameters_ = sum(parameter.numel() for parameter in best.networks.parameters())
        self.restart_scores_ = np.array([each.score for each in fits]) - np.log(prepared.scale)
        self.loss_curve_ = best.curve + np.array([np.log(prepared.scale)] * 2 + [0.0])

    def _set_attributes(self, maximum: Maximum, units: Units) -> None:
        problem = maximum.problem
        total, size = float(problem.unit_weights.sum()), problem.layout.size
        nats = float(problem.row_frequencies.sum() * np.log(self.mixture_.y_scale))
        self.log_likelihood_ = maximum.log_likelihood - nats
        self.restart_log_likelihoods_ = maximum.all_values.numpy() - nats
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
        check_is_fitted(self, "mixture_")
        if isinstance(self.mixture_, FittedNetwork):
            raise ValueError("a mixture of networks has no standard errors; use linear experts and the exact marginal")
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
