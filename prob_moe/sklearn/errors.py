"""Standard errors of a maximum, and the map from standardised parameters to those of the table's own units."""

import numpy as np
import torch

from prob_moe.sklearn.derivatives import derivatives, unit_scores
from prob_moe.sklearn.search import Maximum
from prob_moe.sklearn.table import Floats, Standard


class Units:
    r"""
    The affine map :math:`\theta \mapsto T\theta + t` from a vector of standardised parameters, whose router is relative
    to the last expert, to one in the table's units, whose router is relative to the first; likewise the classes.
    """

    def __init__(self, maximum: Maximum, experts: Standard, router: Standard, centre: float, scale: float) -> None:
        layout = maximum.problem.layout
        k, m, d = layout.num_experts, layout.num_predictors, layout.num_dispersions
        back = experts.back()
        expert = np.zeros((m * len(back) + d, layout.expert_size))
        shift = np.zeros(len(expert))
        predictors = _to_first(m) if layout.is_softmax else scale * np.eye(m)
        expert[: m * len(back), : m * back.shape[1]] = np.kron(predictors, back)
        expert[m * len(back) :, m * back.shape[1] :] = np.eye(d)
        if maximum.problem.family.in_units_of_y:
            shift[0], shift[len(back)] = centre, np.log(scale)
        gate = np.kron(_to_first(k - 1), router.back())
        size = k * len(expert)
        self.matrix = np.zeros((size + len(gate), layout.size))
        self.matrix[:size, : layout.router_start] = np.kron(np.eye(k), expert)
        self.matrix[size:, layout.router_start :] = gate
        self.shift = np.concatenate([np.tile(shift, k), np.zeros(len(gate))])
        self.vector: Floats = self.matrix @ maximum.vector.numpy() + self.shift


def _to_first(count: int) -> Floats:
    """The matrix that makes coefficients relative to the last of count + 1 things relative to the first of them."""
    return np.hstack([-np.ones((count, 1)), np.eye(count)])[:, :count]


def covariances(maximum: Maximum) -> tuple[Floats, Floats]:
    """
    Of the standardised parameters: the inverse of the observed information, and White's estimate (HC0), which does not
    take the model for true. A dispersion on one of its bounds is taken as known; what the table does not determine is
    nan.

    :returns: both (D, D).
    """
    problem, vector = maximum.problem, maximum.vector
    free = ((vector > problem.lower + 1e-6) & (vector < problem.upper - 1e-6)).numpy()
    information = -derivatives(problem, vector.unsqueeze(0)).hessian[0].numpy()[np.ix_(free, free)]
    size = np.sqrt(np.abs(np.diagonal(information)).clip(1e-300))
    scores = unit_scores(problem, vector).numpy()[:, free]
    meat = (scores * problem.unit_weights.numpy()[:, None]).T @ scores
    hessian, robust = np.full((2, len(free), len(free)), np.nan)
    with np.errstate(all="ignore"):
        try:
            # In units of the diagonal, so that roundings of one parameter do not hide another.
            np.linalg.cholesky(information / np.outer(size, size))
            inverse = np.linalg.inv(information / np.outer(size, size)) / np.outer(size, size)
        except np.linalg.LinAlgError:
            inverse = np.full_like(information, np.nan)
        hessian[np.ix_(free, free)] = inverse
        robust[np.ix_(free, free)] = inverse @ meat @ inverse
    return hessian, robust


def in_units(covariance: Floats, matrix: Floats) -> Floats:
    """
    :param covariance: of standardised parameters; nan where there is none.
    :returns: of the parameters that ``matrix`` makes of them; nan where one of those that it needs has none, and for
        those that are constant.
    """
    known = ~np.isnan(np.diagonal(covariance))
    needs = matrix != 0
    result = matrix[:, known] @ covariance[np.ix_(known, known)] @ matrix[:, known].T
    lost = (needs[:, ~known]).any(1) | ~needs.any(1)
    result[lost] = np.nan
    result[:, lost] = np.nan
    return result


def shares(maximum: Maximum) -> torch.Tensor:
    """:returns: the experts' mean probabilities, (k,)."""
    weights = maximum.problem.unit_weights
    return maximum.problem.log_router(maximum.vector.unsqueeze(0))[0].exp() @ weights / weights.sum()
