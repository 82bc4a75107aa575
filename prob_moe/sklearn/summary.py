"""A fitted mixture as a table in words and numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from prob_moe.sklearn.fitted import FittedNetwork
from prob_moe.sklearn.table import Floats


class Summary(str):
    """Text that shows itself as it is, in a notebook or at a prompt."""

    def __repr__(self) -> str:
        return str(self)


class SummarisedEstimator(BaseEstimator):
    """Estimators that can be summarised."""

    def summary(self, kind: str = "hessian") -> Summary:
        """
        :param kind: of the standard errors, "hessian" or "hc0".
        :returns: every expert's share, scale, coefficients with standard errors and z, and the router's coefficients.
        :raises ValueError: there is no such kind.
        """
        check_is_fitted(self, "mixture_")
        if isinstance(self.mixture_, FittedNetwork):
            return self._summary_of_networks()
        errors = self.standard_errors(kind)
        names = self._names(self.mixture_.expert_places)
        router_names = self._names(self.mixture_.router_places)
        lines = [
            f"{type(self).__name__}: {self.mixture_.num_experts} experts, {self.mixture_.family_name}; "
            f"standard errors: {'observed information' if kind == 'hessian' else 'HC0'}",
            f"log-likelihood {self.log_likelihood_:.6g}   AIC {self.aic_:.6g}   BIC {self.bic_:.6g}   "
            f"ICL {self.icl_:.6g}   rows {self.num_observations_:g}   parameters {self.num_parameters_}",
        ]
        for j in range(self.mixture_.num_experts):
            lines += ["", f"expert {j}, share {self.shares_[j]:.4f}{self._spread(j, errors)}"]
            for label, place in self._predictors(j):
                values = np.append(self.intercept_[place], self.coef_[place])
                spread = np.append(errors["intercept"][place], errors["coef"][place])
                lines += [*label, *rows(["intercept", *names], values, spread)]
        for j in range(1, self.mixture_.num_experts):
            lines += ["", f"router: logarithm of the odds of expert {j} against expert 0"]
            values = np.concatenate([[self.router_intercept_[j]], self.router_coef_[j]])
            spread = np.concatenate([[errors["router_intercept"][j]], errors["router_coef"][j]])
            lines += rows(["intercept", *router_names], values, spread)
        return Summary("\n".join(lines))

    def _summary_of_networks(self) -> Summary:
        kinds = f"{self.experts} experts, {self.router} router"
        lines = [
            f"{type(self).__name__}: {self.mixture_.num_experts} experts, {self.mixture_.family_name}; {kinds}",
            f"log-likelihood {self.log_likelihood_:.6g}   rows {self.num_observations_:g}   "
            f"parameters {self.num_parameters_}",
            *(f"expert {j}, share {share:.4f}" for j, share in enumerate(self.shares_)),
        ]
        return Summary("\n".join(lines))

    def _spread(self, j: int, errors: dict[str, Floats]) -> str:
        names = [name for name in ("scale", "degrees_of_freedom") if name in errors]
        values = [getattr(self, name + "_")[j] for name in names]
        return "".join(
            f", {name.replace('_', ' ')} {value:.5g} (s.e. {errors[name][j]:.3g})" for name, value in zip(names, values)
        )

    def _predictors(self, j: int) -> list[tuple[list[str], Any]]:
        """The expert's linear predictors: a line above each, and its place in the attributes."""
        return [([], j)]

    def _names(self, places: Sequence[int]) -> list[str]:
        names = getattr(self, "feature_names_in_", None)
        return [f"x{place}" if names is None else str(names[place]) for place in places]


def rows(names: Sequence[str], values: Floats, errors: Floats) -> list[str]:
    """Lines with a header: name, estimate, standard error, z."""
    width = max(12, *(len(name) for name in names))
    lines = [f"  {'':{width}} {'estimate':>12} {'std. error':>12} {'z':>9}"]
    for name, value, error in zip(names, values, errors):
        z = value / error if error > 0 else np.nan
        lines.append(f"  {name:{width}} {value:12.5g} {error:12.4g} {z:9.2f}")
    return lines
