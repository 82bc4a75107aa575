"""A fitted mixture: what it takes to predict, as arrays."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prob_moe.sklearn.families import FAMILIES, Family
from prob_moe.sklearn.parameters import Layout, Parts
from prob_moe.sklearn.table import Floats, Standard

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FittedMixture:
    """
    :param family_name: the law of y given an expert.
    :param num_experts: k.
    :param num_predictors: m linear predictors of every expert.
    :param expert_places: the experts' columns among those of X.
    :param router_places: the router's columns among those of X.
    :param experts: how the experts' columns are standardised.
    :param router: how the router's columns are standardised.
    :param y_centre: what y was reduced by.
    :param y_scale: what it was divided by then.
    :param vector: the standardised parameters, (D,).
    """

    family_name: str
    num_experts: int
    num_predictors: int
    expert_places: Places
    router_places: Places
    experts: Standard
    router: Standard
    y_centre: float
    y_scale: float
    vector: Floats

    @cached_property
    def family(self) -> Family:
        return FAMILIES[self.family_name](self.num_predictors)

    @cached_property
    def layout(self) -> Layout:
        columns, router = (int(standard.varies.sum()) + 1 for standard in (self.experts, self.router))
        dispersions, is_softmax = self.family.num_dispersions, self.family.is_softmax
        return Layout(self.num_experts, self.num_predictors, dispersions, columns, router, is_softmax)

    def log_router(self, x: Floats) -> Tensor:
        """:returns: log-probabilities of the experts, (k, n)."""
        z = torch.from_numpy(self.router.design(x[:, self.router_places]))
        return (self._parts.router[0] @ z.mT).log_softmax(0)

    def predictors(self, x: Floats, offset: Floats | None = None) -> Tensor:
        """:returns: the experts' linear predictors of the standardised y, (m, k, n)."""
        columns = torch.from_numpy(self.experts.design(x[:, self.expert_places]))
        predictors = torch.einsum("kmp,np->mkn", self._parts.location[0], columns)
        return predictors if offset is None else predictors + torch.from_numpy(offset / self.y_scale)

    def dispersions(self) -> Tensor:
        """:returns: logarithms, of the standardised y, (d, k, 1)."""
        return self._parts.dispersion[0].mT.unsqueeze(-1)

    def log_likelihoods(self, x: Floats, target: Floats, offset: Floats | None = None) -> Tensor:
        """
        :param target: y, and what else the family needs, (t, n).
        :returns: of every expert for every row, nats, (k, n).
        """
        predictors = self.predictors(x, offset).unsqueeze(1)
        dispersions = self.dispersions().unsqueeze(1).expand(-1, 1, -1, len(x))
        standardised = torch.from_numpy(self.standardised(target))
        return self.family.log_prob(standardised, (*predictors, *dispersions))[0] - np.log(self.y_scale)

    def standardised(self, target: Floats) -> Floats:
        """:returns: the target with y standardised, (t, n)."""
        return np.vstack([(target[:1] - self.y_centre) / self.y_scale, target[1:]])

    @cached_property
    def _parts(self) -> Parts:
        return self.layout.split(torch.from_numpy(self.vector).unsqueeze(0))
