"""The small problem on which estimators of gradients are compared: fixed parameters and data, exact gradients."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from models.piecewise import StackedLinear
from prob_moe.distributions import AssignmentDistribution, IndependentRouting, capacity_from_factor
from prob_moe.distributions.support import router_choices
from prob_moe.experts import BatchedExperts
from prob_moe.mixture import MixtureOfExperts
from prob_moe.testing import exact_mixture_bound

Procedure = Callable[..., AssignmentDistribution]

#: of inputs and outputs; equal, because some alternatives add the input to the output
FEATURES = 3
NOISE = 1.0
#: the balanced objective is enumerated up to this number of choices k^n; beyond, all likelihoods take too long
MAX_CHOICES = 3**6


@dataclass(frozen=True)
class Setting:
    """
    What varies between problems.

    :param n: datapoints.
    :param k: experts.
    :param capacity_factor: capacity = ceil(capacity_factor * n / k).
    :param sharpness: standard deviation of the router's weights and half that of its biases.
    :param imbalance: difference in router bias, nats, between the most and the least preferred expert.
    :raises ValueError: if a number is out of range.
    """

    n: int = 32
    k: int = 4
    capacity_factor: float = 1.0
    sharpness: float = 1.0
    imbalance: float = 1.0

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("k", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("sharpness", "imbalance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a finite number >= 0, got {getattr(self, name)}")
        if self.capacity * self.k < self.n:
            raise ValueError(
                f"capacity_factor={self.capacity_factor:g} leaves {self.k} experts with {self.capacity} slots each, "
                f"fewer than n={self.n} datapoints; balanced procedures need a factor of at least 1"
            )

    @property
    def capacity(self) -> int:
        return capacity_from_factor(self.capacity_factor, self.n, self.k)


@dataclass(frozen=True)
class Problem:
    """
    A linear router with a bias that all datapoints share, and linear experts halfway to those that made the data.

    :param setting: what it is like.
    :param router: weight (d, k) and bias (1, k), in the order of ``StackedLinear``.
    :param experts: weight (k, d, d) and bias (k, d).
    :param x: (n, d).
    :param y: (n, d).
    """

    setting: Setting
    router: tuple[Tensor, Tensor]
    experts: tuple[Tensor, Tensor]
    x: Tensor
    y: Tensor

    @classmethod
    def of(cls, setting: Setting, seed: int = 0) -> "Problem":
        """Random, float64; settings that differ in sharpness, imbalance or capacity alone share their noise."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        n, k, d = setting.n, setting.k, FEATURES
        preference = setting.imbalance * torch.linspace(0.5, -0.5, k, dtype=torch.float64)
        router = (setting.sharpness * normal(d, k), setting.sharpness / 2 * normal(1, k) + preference)
        teachers = (normal(k, d, d) / d**0.5, normal(k, d))
        experts = (teachers[0] + 0.5 * normal(k, d, d) / d**0.5, teachers[1] + 0.5 * normal(k, d))
        x, chosen = normal(n, d), torch.randint(k, (n,), generator=generator)
        mean = (x.unsqueeze(-2) @ teachers[0][chosen]).squeeze(-2) + teachers[1][chosen]
        return cls(setting, router, experts, x, mean + NOISE * normal(n, d))

    def mixture(self, copies: int | None = None) -> MixtureOfExperts:
        """
        The model with parameters of its own.

        :param copies: number of equal models, stacked in front of every parameter; None for one without that dimension.
        """
        lead = () if copies is None else (copies,)
        d, k = FEATURES, self.setting.k
        mixture = MixtureOfExperts(
            StackedLinear(lead, d, k).double(),
            BatchedExperts(k, d, None, d, batch_shape=lead, dtype=torch.float64),
            likelihood,
            assignment=IndependentRouting,
            capacity=self.setting.capacity,
        )
        values = (*self.router, *self.experts)
        with torch.no_grad():
            for parameter, value in zip(parameters(mixture), values, strict=True):
                parameter.copy_(value)
        return mixture

    def data(self, copies: int) -> tuple[Tensor, Tensor]:
        """x (copies, n, d) and y (copies, n, d), views."""
        return self.x.expand(copies, -1, -1), self.y.expand(copies, -1, -1)


def likelihood(out: Tensor) -> dist.Independent:
    """A Gaussian of all output features together: one event per datapoint."""
    return dist.Normal(out, NOISE).to_event(1)


def parameters(mixture: MixtureOfExperts) -> list[nn.Parameter]:
    """Weight and bias of the router, then of the experts."""
    return [*mixture.router.parameters(), *mixture.experts.parameters()]


# Exact objectives ----------------------------------------------------------------------------------------------------


def exact_gradient(problem: Problem, objective: Callable[[MixtureOfExperts, Tensor, Tensor], Tensor]) -> list[Tensor]:
    """:returns: gradients with respect to :func:`parameters`, of a scalar objective summed over datapoints."""
    mixture = problem.mixture()
    total = objective(mixture, problem.x, problem.y)
    found = torch.autograd.grad(total, parameters(mixture), materialize_grads=True)
    return list(found)


def router_objective(mixture: MixtureOfExperts, x: Tensor, y: Tensor) -> Tensor:
    r""":returns: :math:`R = \sum_{ij} p_{ij} f_{ij}`, nats."""
    return mixture.router_objective(x, y)


def gated_objective(mixture: MixtureOfExperts, x: Tensor, y: Tensor) -> Tensor:
    r"""
    :returns: :math:`\sum_i E_{z \sim p_i}[L_i(p_{iz} f_z(x_i))]`, the expected log-likelihood of outputs that the gate
        scales, without capacity; nats.
    """
    p = mixture.router(x).softmax(-1)
    out = p.unsqueeze(-1) * mixture.experts.dense(x)
    return (p * likelihood(out).log_prob(y.unsqueeze(-2))).sum()


def balanced_objective(procedure: Procedure, mixture: MixtureOfExperts, x: Tensor, y: Tensor) -> Tensor:
    r"""
    By enumeration of all assignments Z of a procedure.

    :returns: :math:`B = \sum_Z P(Z) \sum_i f_i(z_i)` over the processed datapoints, nats.
    :raises ValueError: if there are too many assignments.
    """
    routing = procedure(mixture.router(x), capacity=mixture.capacity)
    values = routing.enumerate_support()
    f = mixture.log_likelihoods(x, y).expand(len(values), -1, -1)
    chosen = f.gather(-1, router_choices(values).unsqueeze(-1)).squeeze(-1)
    return routing.log_prob(values).exp() @ (chosen * (values >= 0)).sum(-1)


def exact_balanced_gradient(problem: Problem, procedure: Procedure) -> list[Tensor] | None:
    """:returns: as :func:`exact_gradient`, or None where there are too many assignments to enumerate."""
    setting = problem.setting
    if setting.k**setting.n > MAX_CHOICES:
        return None
    return exact_gradient(problem, partial(balanced_objective, procedure))


def mixture_capacity(problem: Problem) -> int:
    """:returns: the capacity where every datapoint has two experts: that of the same factor, n at most."""
    setting = problem.setting
    return min(setting.n, capacity_from_factor(setting.capacity_factor, 2 * setting.n, setting.k))


def mixture_bound(procedure: Procedure, capacity: int, mixture: MixtureOfExperts, x: Tensor, y: Tensor) -> Tensor:
    """:returns: the bound M of a procedure that selects several experts, by enumeration, nats."""
    routing = procedure(mixture.router(x), capacity=capacity)
    return exact_mixture_bound(routing, mixture.log_likelihoods(x, y))


def exact_mixture_gradient(problem: Problem, procedure: Procedure) -> list[Tensor] | None:
    """
    With the procedure held fixed as a proposal.

    :param procedure: with ``num_selected``.
    :returns: as :func:`exact_gradient`, or None where there are too many assignments to enumerate, or no law.
    """
    setting = problem.setting
    # Pairs of experts, of which each may drop the datapoint.
    if (setting.k * (setting.k - 1) // 2) ** setting.n > MAX_CHOICES:
        return None
    try:
        return exact_gradient(problem, partial(mixture_bound, procedure, mixture_capacity(problem)))
    except NotImplementedError:
        return None
