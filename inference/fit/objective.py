"""Ways to train by name: the procedure that assigns, the estimator of the gradient, its baseline."""

from enum import StrEnum
from typing import Any, Protocol

import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from inference.decaying_average import DecayingAverage
from inference.procedures import PROCEDURES
from prob_moe.distributions import AssignmentDistribution
from prob_moe.estimators import LeaveOneOut_ELBO, TraceRouting_ELBO, balanced_objective


class BatchLoss(Protocol):
    """From a batch (x, y) to minus the objective, nats per datapoint. Its state is what it knows of earlier steps."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Assignment(StrEnum):
    """Names of the assignment distributions, those of :mod:`inference.procedures`."""

    INDEPENDENT = "independent"
    SKIP = "skip"
    GUMBEL_MATCHING = "gumbel-matching"
    DEPENDENT_ROUNDING = "dependent-rounding"

    @property
    def distribution(self) -> type[AssignmentDistribution]:
        return PROCEDURES[self]


class Estimator(StrEnum):
    """
    Weighted: the router objective, unbiased. Unweighted: its biased twin, every processed datapoint counts 1.
    Balanced: the balanced objective, unbiased, through Pyro's own ELBO.
    """

    WEIGHTED = "weighted"
    UNWEIGHTED = "unweighted"
    BALANCED = "balanced"


class Baseline(StrEnum):
    """What is subtracted from the cost that multiplies the score."""

    NONE = "none"
    DECAYING = "decaying"
    NEURAL = "neural"
    LEAVE_ONE_OUT = "leave-one-out"

    @property
    def options(self) -> dict[str, Any] | None:
        """``infer["baseline"]`` of an assignment site; the neural baseline is a module of the model instead."""
        if self is Baseline.DECAYING:
            return {"use_decaying_avg_baseline": True}
        return {"use_leave_one_out_baseline": True} if self is Baseline.LEAVE_ONE_OUT else None


def check_combination(estimator: Estimator, baseline: Baseline, num_particles: int) -> None:
    """
    :raises ValueError: if an estimator cannot use a baseline.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles must be a positive int, got {num_particles!r}")
    if baseline is Baseline.LEAVE_ONE_OUT and num_particles < 2:
        raise ValueError(f"the leave-one-out baseline compares particles: num_particles={num_particles} must be >= 2")
    if estimator is Estimator.BALANCED and baseline is Baseline.NEURAL:
        raise ValueError(
            f"the balanced objective has one cost a batch, not one a datapoint: baseline {baseline} does not apply, "
            "use none, decaying or leave-one-out"
        )


def batch_loss(model: nn.Module, estimator: Estimator, baseline: Baseline, num_particles: int = 1) -> BatchLoss:
    """
    Minus the objective that an estimator targets, in nats per datapoint, with the estimator's gradient.

    :param model: called with (x, y); its assignment sites carry the baseline's options.
    :raises ValueError: see :func:`check_combination`.
    """
    check_combination(estimator, baseline, num_particles)
    if estimator is Estimator.BALANCED:
        return BalancedLoss(
            model,
            decaying_baseline=baseline is Baseline.DECAYING,
            leave_one_out=baseline is Baseline.LEAVE_ONE_OUT,
            num_particles=num_particles,
        )
    elbo = TraceRouting_ELBO(
        weighted=estimator is Estimator.WEIGHTED,
        num_particles=num_particles,
        # A network predicts for one particle: in a second layer its input differs between them.
        vectorize_particles=num_particles > 1 and baseline is not Baseline.NEURAL,
        max_plate_nesting=_plate_nesting(model),
    )
    return RouterLoss(model, elbo)


class RouterLoss:
    """
    Minus the router objective per datapoint.

    :param elbo: its baselines remember the costs of earlier steps.
    """

    def __init__(self, model: nn.Module, elbo: TraceRouting_ELBO) -> None:
        self.model = model
        self.elbo = elbo

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.elbo.differentiable_loss(self.model, _no_guide, x, y) / y.numel()

    def state_dict(self) -> dict[str, Any]:
        return self.elbo.baselines.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.elbo.baselines.load_state_dict(state)


class BalancedLoss:
    r"""
    Minus the balanced objective per datapoint, through Pyro's :class:`~pyro.infer.Trace_ELBO`.

    The n datapoints that are assigned together are one cost, so a decaying baseline is one number: a constant factor
    :math:`e^{-nb}` in the model, which shifts the cost and leaves the expected gradient as it is. b is the mean cost
    per datapoint of earlier steps.

    :param decaying_baseline: whether to have it.
    :param leave_one_out: whether to subtract the mean cost of the other particles instead
        (:class:`~prob_moe.estimators.LeaveOneOut_ELBO`).
    :param beta: decay of the mean over earlier steps.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        decaying_baseline: bool = False,
        leave_one_out: bool = False,
        num_particles: int = 1,
        beta: float = 0.9,
    ) -> None:
        self.model = model
        self.decaying_baseline = decaying_baseline
        self.beta = beta
        nesting = _plate_nesting(model)
        self.elbo = (
            LeaveOneOut_ELBO(num_particles, vectorize_particles=True, max_plate_nesting=nesting)
            if leave_one_out
            else Trace_ELBO(num_particles, max_plate_nesting=nesting)
        )
        self._mean_cost = DecayingAverage(torch.zeros(()))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        n = y.shape[-1]
        shift = n * self._mean_cost.value(self.beta) if self.decaying_baseline else torch.zeros(())
        shift = shift.to(y.device)

        def shifted(x: Tensor, y: Tensor) -> None:
            self.model(x, y)
            pyro.factor("baseline", -shift)

        loss = (self.elbo.differentiable_loss(*balanced_objective(shifted), x, y) - shift) / y.numel()
        self._mean_cost.update(-loss.detach(), self.beta)
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"total": self._mean_cost.total, "steps": self._mean_cost.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._mean_cost = DecayingAverage(**state)


def _plate_nesting(model: nn.Module) -> int:
    """Plates of a model around its observations: the data plate, unless it says otherwise."""
    return getattr(model, "max_plate_nesting", 1)


def _no_guide(x: Tensor, y: Tensor) -> None:
    """All latent sites are assignments, which the model draws."""
