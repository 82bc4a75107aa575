"""Ways to train by name: the procedure that assigns, the estimator of the gradient, its baseline."""

from enum import StrEnum
from typing import Any, Protocol

from torch import Tensor, nn

from inference.procedures import PROCEDURES
from prob_moe.distributions import AssignmentDistribution
from prob_moe.estimators import TraceBalanced_ELBO, TraceRouting_ELBO


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
    Balanced: the balanced objective, unbiased.
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


def check_combination(baseline: Baseline, num_particles: int) -> None:
    """
    :raises ValueError: if a baseline needs more particles.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles must be a positive int, got {num_particles!r}")
    if baseline is Baseline.LEAVE_ONE_OUT and num_particles < 2:
        raise ValueError(f"the leave-one-out baseline compares particles: num_particles={num_particles} must be >= 2")


def batch_loss(model: nn.Module, estimator: Estimator, baseline: Baseline, num_particles: int = 1) -> BatchLoss:
    """
    Minus the objective that an estimator targets, in nats per datapoint, with the estimator's gradient.

    :param model: called with (x, y); its assignment sites carry the baseline's options.
    :raises ValueError: see :func:`check_combination`.
    """
    check_combination(baseline, num_particles)
    options: dict[str, Any] = {
        "num_particles": num_particles,
        # A network predicts for one particle: in a second layer its input differs between them.
        "vectorize_particles": num_particles > 1 and baseline is not Baseline.NEURAL,
        "max_plate_nesting": _plate_nesting(model),
    }
    if estimator is Estimator.BALANCED:
        return ElboLoss(model, TraceBalanced_ELBO(**options))
    return ElboLoss(model, TraceRouting_ELBO(weighted=estimator is Estimator.WEIGHTED, **options))


class ElboLoss:
    """
    Minus the objective of an ELBO per datapoint.

    :param elbo: its baselines remember the costs of earlier steps.
    """

    def __init__(self, model: nn.Module, elbo: TraceRouting_ELBO | TraceBalanced_ELBO) -> None:
        self.model = model
        self.elbo = elbo

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.elbo.differentiable_loss(self.model, None, x, y) / y.numel()

    def state_dict(self) -> dict[str, Any]:
        return self.elbo.baselines.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.elbo.baselines.load_state_dict(state)


def _plate_nesting(model: nn.Module) -> int:
    """Plates of a model around its observations: the data plate, unless it says otherwise."""
    return getattr(model, "max_plate_nesting", 1)
