"""From X, y and options to the problem that is solved."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from prob_moe.sklearn.families import Family
from prob_moe.sklearn.problem import Problem
from prob_moe.sklearn.search import one_expert_floors
from prob_moe.sklearn.table import Floats, Standard, distinct_rows, distinct_units, standard_of


class Prepared(NamedTuple):
    """
    :param problem: standardised, with every distinct row once.
    :param fitted: what a :class:`.Fitted` knows of it.
    :param experts: how the experts' columns are standardised.
    :param router: how the router's columns are standardised.
    :param centre: what y was reduced by.
    :param scale: what it was divided by then.
    """

    problem: Problem
    fitted: dict[str, Any]
    experts: Standard
    router: Standard
    centre: float
    scale: float


class Columns(NamedTuple):
    """
    :param experts: the experts' places among the columns of X.
    :param router: the router's.
    :param names: of all columns, where X has them.
    """

    experts: np.ndarray
    router: np.ndarray
    names: Sequence[str] | None

    def name(self, place: int) -> str:
        return repr(str(self.names[place])) if self.names is not None else str(place)


def prepare(
    num_experts: int,
    family: Family,
    x: Floats,
    target: Floats,
    weights: Floats,
    offset: Floats | None,
    units: Any,
    columns: Columns,
) -> Prepared:
    """
    :param target: y in numbers that the family understands, and what else it needs, (t, n).
    :param units: of every row, numbered, (n,); None where each row is one by itself.
    :raises ValueError: there are fewer rows than experts, or the router's columns vary within a unit.
    """
    used, num_rows = np.union1d(columns.experts, columns.router), len(x)
    rows = np.column_stack([target.T, np.zeros(num_rows) if offset is None else offset, x[:, used]])
    if units is None:
        rows, weights = distinct_rows(rows, weights)
    else:
        rows, weights, units = distinct_units(rows, weights, units)
    target, offset, x = rows[:, : len(target)].T, rows[:, len(target)], np.zeros((len(rows), x.shape[1]))
    x[:, used] = rows[:, len(target) + 1 :]
    independent = len(rows) if units is None else int(units[-1]) + 1
    if num_experts > independent:
        what = "rows" if units is None else "units"
        raise ValueError(
            f"num_experts={num_experts} must be at most the number of distinct {what}, but "
            f"n_samples={num_rows}, of which {independent} are distinct and have weight"
        )
    first = np.arange(len(rows)) if units is None else np.flatnonzero(np.diff(units, prepend=-1))
    if units is not None:
        _check_router(x[:, columns.router], first[units], columns)
    experts = standard_of(x[:, columns.experts], weights)
    router = standard_of(x[:, columns.router], weights)
    constant = used[~standard_of(x[:, used], weights).varies]
    if len(constant):
        words = ", ".join(columns.name(place) for place in constant)
        warnings.warn(f"X is constant in column {words}: its coefficients are 0", UserWarning, stacklevel=4)
    standard = standard_of(target[:1].T, weights)
    centre, scale = (float(standard.centre[0]), float(standard.scale[0])) if family.in_units_of_y else (0.0, 1.0)
    low, high = torch.tensor([*zip(*family.bounds)] or [[], []], dtype=torch.float64)
    problem = Problem(
        family,
        num_experts,
        torch.from_numpy(experts.design(x[:, columns.experts])),
        torch.from_numpy(router.design(x[first][:, columns.router])),
        torch.from_numpy(np.vstack([(target[:1] - centre) / scale, target[1:]])),
        torch.from_numpy(offset / scale),
        torch.from_numpy(np.ones_like(weights) if units is None else weights),
        torch.from_numpy(weights if units is None else np.ones(independent)),
        None if units is None else torch.from_numpy(units),
        low,
        high,
    )
    problem = replace(problem, floors=one_expert_floors(problem))
    fitted = dict(family_name=family.name, num_experts=num_experts, num_predictors=family.num_predictors)
    fitted |= dict(expert_places=columns.experts, router_places=columns.router, experts=experts, router=router)
    return Prepared(problem, fitted | dict(y_centre=centre, y_scale=scale), experts, router, centre, scale)


def _check_router(values: Floats, first: np.ndarray, columns: Columns) -> None:
    varying = (values != values[first]).any(0)
    if varying.any():
        column = columns.name(columns.router[int(np.argmax(varying))])
        raise ValueError(
            f"units: column {column} varies within a unit, whose rows share their expert; give router_columns that "
            "do not, or router='constant'"
        )
