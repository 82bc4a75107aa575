"""The toy task of two lines as a Bayesian model: priors on router, experts and noise, routing summed out."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from models.piecewise import PiecewiseData

#: the two coefficients of a line: its value at x = 1/2, so that they are nearly independent in the posterior, and slope
FEATURES = ("level", "slope")

Parameters = dict[str, Tensor]


@dataclass(frozen=True)
class Prior:
    r"""
    Independent priors, in units of the data. Lines are :math:`a + b (x - 1/2)`.

    :param expert_scale: standard deviations of a and b of every expert's mean, around 0.
    :param router_scale: standard deviations of a and b of every router logit, around 0. They allow a switch within
        about 1/20 of the range of x; a sharper one than the prior allows the data could hardly tell apart.
    :param noise_median: of the log-normal noise.
    :param noise_sigma: standard deviation of the log-noise; with 0 the noise is known.
    """

    expert_scale: tuple[float, float] = (1.0, 3.0)
    router_scale: tuple[float, float] = (10.0, 20.0)
    noise_median: float = 0.2
    noise_sigma: float = 1.0

    def __post_init__(self) -> None:
        for name in ("expert_scale", "router_scale"):
            if not all(0 < scale < math.inf for scale in getattr(self, name)):
                raise ValueError(f"{name} must be two positive numbers, got {getattr(self, name)!r}")
        if not 0 < self.noise_median < math.inf:
            raise ValueError(f"noise_median must be positive and finite, got {self.noise_median!r}")
        if not 0 <= self.noise_sigma < math.inf:
            raise ValueError(f"noise_sigma must be >= 0 and finite, got {self.noise_sigma!r}")


class Coefficients(NamedTuple):
    """Parameters in units of the data, batched over draws."""

    experts: Tensor  #: (*, k, 2), see ``FEATURES``
    router: Tensor  #: (*, k, 2), summing to 0 over experts
    noise: Tensor  #: (*)


class BayesianPiecewise:
    r"""
    The posterior of a mixture of k linear experts with a logistic router, given one data set:

    .. math::
        \log p(\theta, y) = \log p(\theta)
        + \sum_i \log \sum_j \mathrm{softmax}_j(\phi_i)\, \mathrm{Normal}(y_i; m_{ij}, \sigma).

    The parameters :math:`\theta` are standard normal a priori, and :meth:`coefficients` scales them. A constant added
    to all logits of a datapoint changes nothing, so the router has k - 1 rows of parameters: coordinates of the
    logits' subspace of sum 0 in an orthonormal basis, whose normal prior treats all experts alike.

    The log-density does not change if the experts are renumbered. So the posterior has k! equal copies of each of its
    modes, between which no sampler moves when the experts differ.

    :param data: x (n, 1) and y (n,); computed in float64.
    :param num_experts: k.

    >>> _ = torch.manual_seed(0)
    >>> from models.piecewise import piecewise_data
    >>> posterior = BayesianPiecewise(piecewise_data(num_datapoints=20), num_experts=2)
    >>> posterior.log_joint(posterior.prior_draw()).shape
    torch.Size([])
    """

    def __init__(self, data: PiecewiseData, num_experts: int, prior: Prior | None = None) -> None:
        if num_experts < 1:
            raise ValueError(f"num_experts must be a positive int, got {num_experts!r}")
        if data.y.dim() != 1 or data.x.shape != (*data.y.shape, 1) or not len(data.y):
            raise ValueError(
                f"data must be one set, x (n, 1) and y (n,) with n >= 1, got {tuple(data.x.shape)} and "
                f"{tuple(data.y.shape)}"
            )
        self.x, self.y = data.x.double().squeeze(-1), data.y.double()
        self.num_experts = num_experts
        self.prior = Prior() if prior is None else prior

    def prior_draw(self) -> Parameters:
        """Parameters drawn from the prior."""
        shapes: dict[str, tuple[int, ...]] = {"experts": (self.num_experts, 2)}
        if self.num_experts > 1:
            shapes["router"] = (self.num_experts - 1, 2)
        if self.prior.noise_sigma:
            shapes["noise"] = ()
        return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def coefficients(self, parameters: Parameters) -> Coefficients:
        """
        :param parameters: experts (*, k, 2), router (*, k - 1, 2) where k > 1, noise (*) unless it is known.
        """
        experts = parameters["experts"]
        noise = torch.full(experts.shape[:-2], self.prior.noise_median, dtype=torch.float64)
        if "noise" in parameters:
            noise = noise * (self.prior.noise_sigma * parameters["noise"]).exp()
        expert_scale, router_scale, basis = self._constants
        router = torch.zeros_like(experts)
        if "router" in parameters:
            router = basis @ (parameters["router"] * router_scale)
        return Coefficients(experts * expert_scale, router, noise)

    def log_likelihood(self, parameters: Parameters) -> Tensor:
        """:returns: log p(y_i | θ) with routing summed out, nats, (*, n)."""
        experts, router, noise = self.coefficients(parameters)
        log_p = (self._features @ router.mT).log_softmax(-1)
        noise = noise[..., None, None]
        error = (self.y.unsqueeze(-1) - self._features @ experts.mT) / noise
        log_normal = -0.5 * error.square() - noise.log() - 0.5 * math.log(2 * math.pi)
        return (log_p + log_normal).logsumexp(-1)

    def log_joint(self, parameters: Parameters) -> Tensor:
        """:returns: log p(θ, y), nats, (*)."""
        total = self.log_likelihood(parameters).sum(-1)
        for name, value in parameters.items():
            log_normal = -0.5 * (value.square() + math.log(2 * math.pi))
            total = total + (log_normal if name == "noise" else log_normal.sum((-2, -1)))
        return total

    def potential(self, parameters: Parameters) -> Tensor:
        """Minus :meth:`log_joint`: what a sampler moves on, four times as fast as a traced Pyro model."""
        return -self.log_joint(parameters)

    def model(self) -> Tensor:
        """
        The same law as a Pyro model with the routing as a site, for Pyro's own machinery: enumeration, conditioning.

        :returns: the observations.
        """
        parameters = {
            name: pyro.sample(name, dist.Normal(torch.zeros_like(value), 1.0).to_event(value.dim()))
            for name, value in self.prior_draw().items()
        }
        experts, router, noise = self.coefficients(parameters)
        with pyro.plate("data", len(self.y)):
            z = pyro.sample(
                "assignment", dist.Categorical(logits=self._features @ router.mT), infer={"enumerate": "parallel"}
            )
            lines = experts[z]
            mean = (lines * self._features).sum(-1)
            return pyro.sample("y", dist.Normal(mean, noise), obs=self.y)

    @torch.no_grad()
    def predict(self, parameters: Parameters) -> Tensor:
        """
        Draw new observations at the same x, routing first.

        :returns: (*, n).
        """
        experts, router, noise = self.coefficients(parameters)
        z = dist.Categorical(logits=self._features @ router.mT).sample()
        mean = (self._features @ experts.mT).gather(-1, z.unsqueeze(-1)).squeeze(-1)
        return mean + noise.unsqueeze(-1) * torch.randn_like(mean)

    @cached_property
    def _features(self) -> Tensor:
        return features(self.x)

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scales of experts and router, (2,), and the basis of sum 0, (k, k - 1)."""
        k = self.num_experts
        scales = [torch.tensor(s, dtype=torch.float64) for s in (self.prior.expert_scale, self.prior.router_scale)]
        ones_first = torch.cat([torch.ones(k, 1), torch.eye(k)[:, 1:]], dim=1).double()
        return scales[0], scales[1], torch.linalg.qr(ones_first).Q[:, 1:]


def features(x: Tensor) -> Tensor:
    """
    What the coefficients of a line multiply, (*, 2): 1 and x - 1/2.

    :param x: (*)
    """
    return torch.stack([torch.ones_like(x), x - 0.5], dim=-1)
