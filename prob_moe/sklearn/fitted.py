"""A fitted mixture: what it takes to predict, as arrays."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prob_moe.sklearn.families import FAMILIES, Family
from prob_moe.sklearn.networks import Networks
from prob_moe.sklearn.parameters import Layout, Parts
from prob_moe.sklearn.table import Floats, Standard

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fitted(ABC):
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

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @cached_property
    def family(self) -> Family:
        return FAMILIES[self.family_name](self.num_predictors)

    @abstractmethod
    def log_router(self, x: Floats) -> Tensor:
        """:returns: log-probabilities of the experts, (k, n)."""

    @abstractmethod
    def local(self, x: Floats, offset: Floats | None = None) -> tuple[Tensor, Tensor]:
        """
        :returns: the experts' predictors of the standardised y, (m, k, n), and logarithms of their dispersions,
            (d, k, n).
        """

    def predictors(self, x: Floats, offset: Floats | None = None) -> Tensor:
        """:returns: the experts' predictors of the standardised y, (m, k, n)."""
        return self.local(x, offset)[0]

    def log_likelihoods(self, x: Floats, target: Floats, offset: Floats | None = None) -> Tensor:
        """
        :param target: y, and what else the family needs, (t, n).
        :returns: of every expert for every row, nats, (k, n).
        """
        predictors, dispersions = self.local(x, offset)
        local = (*predictors.unsqueeze(1), *dispersions.unsqueeze(1))
        standardised = torch.from_numpy(self.standardised(target))
        return self.family.log_prob(standardised, local)[0] - np.log(self.y_scale)

    def standardised(self, target: Floats) -> Floats:
        """:returns: the target with y standardised, (t, n)."""
        return np.vstack([(target[:1] - self.y_centre) / self.y_scale, target[1:]])

    def _router_design(self, x: Floats) -> Tensor:
        return torch.from_numpy(self.router.design(x[:, self.router_places]))

    def _expert_design(self, x: Floats) -> Tensor:
        return torch.from_numpy(self.experts.design(x[:, self.expert_places]))


@dataclass(frozen=True)
class FittedMixture(Fitted):
    """
    Linear experts and router.

    :param vector: the standardised parameters, (D,).
    """

    vector: Floats

    @cached_property
    def layout(self) -> Layout:
        columns, router = (int(standard.varies.sum()) + 1 for standard in (self.experts, self.router))
        dispersions, is_softmax = self.family.num_dispersions, self.family.is_softmax
        return Layout(self.num_experts, self.num_predictors, dispersions, columns, router, is_softmax)

    def log_router(self, x: Floats) -> Tensor:
        return (self._parts.router[0] @ self._router_design(x).mT).log_softmax(0)

    def local(self, x: Floats, offset: Floats | None = None) -> tuple[Tensor, Tensor]:
        predictors = torch.einsum("kmp,np->mkn", self._parts.location[0], self._expert_design(x))
        if offset is not None:
            predictors = predictors + torch.from_numpy(offset / self.y_scale)
        return predictors, self._parts.dispersion[0].mT.unsqueeze(-1).expand(-1, -1, len(x))

    @cached_property
    def _parts(self) -> Parts:
        return self.layout.split(torch.from_numpy(self.vector).unsqueeze(0))


@dataclass(frozen=True)
class FittedNetwork(Fitted):
    """
    Experts and router that are networks.

    :param hidden_features: of an expert; None for linear ones.
    :param router_features: hidden ones of the router; None for a linear one.
    :param weights: of :class:`Networks`, by name.
    """

    hidden_features: int | None
    router_features: int | None
    weights: dict[str, Floats]

    @torch.no_grad()
    def log_router(self, x: Floats) -> Tensor:
        return self._networks.log_router(self._router_design(x))

    @torch.no_grad()
    def local(self, x: Floats, offset: Floats | None = None) -> tuple[Tensor, Tensor]:
        shift = None if offset is None else torch.from_numpy(offset / self.y_scale)
        local = torch.cat(self._networks.dense(self._expert_design(x), shift))
        return local[: self.num_predictors], local[self.num_predictors :]

    @cached_property
    def _networks(self) -> Networks:
        columns, router = (int(standard.varies.sum()) + 1 for standard in (self.experts, self.router))
        # Copies, as what comes from a file may be read-only.
        weights = {name: torch.tensor(np.array(value)) for name, value in self.weights.items()}
        hidden, router_hidden = self.hidden_features, self.router_features
        networks = Networks(self.family, self.num_experts, columns, router, hidden, router_hidden, weights["bounds"])
        networks.load_state_dict(weights)
        return networks
