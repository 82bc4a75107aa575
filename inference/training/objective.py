"""The loss of an estimator by name, and which names go together."""

from typing import Any, Protocol

from torch import Tensor, nn

from inference.registry import Objective
from inference.registry.builtin import REGISTRY
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO


class BatchLoss(Protocol):
    """From a batch (x, y) to minus the objective, nats per datapoint. Its state is what it knows of earlier steps."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def check_several(assignment: str, estimator: str, baseline: str, num_selected: int | None) -> None:
    """
    :param num_selected: experts of every datapoint, None for one.
    :raises ValueError: if procedure, estimator or baseline wants another number of experts.
    """
    procedures, estimators = REGISTRY.procedures, REGISTRY.estimators
    if num_selected is None:
        if estimators[estimator].needs_several:
            raise ValueError(
                f"the estimator {estimator} wants several experts per datapoint: give num_selected of at least 2, got "
                "None"
            )
        return
    if not procedures[assignment].takes_several:
        able = ", ".join(name for name, entry in procedures.items() if entry.takes_several)
        raise ValueError(
            f"{assignment} gives every datapoint one expert, got num_selected={num_selected}: use one of {able}"
        )
    if not estimators[estimator].takes_several:
        able = ", ".join(name for name, entry in estimators.items() if entry.takes_several)
        raise ValueError(
            f"the estimator {estimator} is for one expert per datapoint, got num_selected={num_selected}: use one of "
            f"{able}"
        )
    if num_selected < 2:
        raise ValueError(f"num_selected must be at least 2, got {num_selected}: leave it out for one expert")
    if baseline != "none":
        raise ValueError(f"several experts per datapoint need no baseline, got {baseline}: leave it out")


def check_combination(baseline: str, num_particles: int) -> None:
    """
    :raises ValueError: if a baseline needs more particles.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles must be a positive int, got {num_particles!r}")
    if REGISTRY.baselines[baseline].needs_particles and num_particles < 2:
        raise ValueError(f"the {baseline} baseline compares particles: num_particles={num_particles} must be >= 2")


def batch_loss(model: nn.Module, estimator: str, baseline: str, num_particles: int = 1) -> BatchLoss:
    """
    Minus the objective that an estimator targets, in nats per datapoint, with the estimator's gradient.

    :param model: called with (x, y); its assignment sites carry the baseline's options.
    :param estimator: its name in the registry.
    :param baseline: likewise.
    :raises ValueError: see :func:`check_combination`.
    """
    check_combination(baseline, num_particles)
    # What the estimate is there is said by the command.
    surrogate = {"check_meeting": False} if is_surrogate(model, estimator) else {}
    elbo = REGISTRY.estimators[estimator].make(
        num_particles=num_particles,
        # A network predicts for one particle: in a second layer its input differs between them.
        vectorize_particles=num_particles > 1 and not REGISTRY.baselines[baseline].network,
        max_plate_nesting=_plate_nesting(model),
        **surrogate,
    )
    return ElboLoss(model, elbo)


def is_surrogate(of: object, estimator: str) -> bool:
    """
    :param of: a model or task.
    :returns: whether its datapoints meet elsewhere than in the capacity (``datapoints_meet``), so that an estimator of
        the router objective is biased.
    """
    meet = getattr(of, "datapoints_meet", False)
    return meet and REGISTRY.estimators[estimator].objective is Objective.ROUTER


class ElboLoss:
    """
    Minus the objective of an ELBO per datapoint.

    :param elbo: its baselines, where it has any, remember the costs of earlier steps.
    """

    def __init__(self, model: nn.Module, elbo: TraceRouting_ELBO | TraceBalanced_ELBO | TraceMixture_ELBO) -> None:
        self.model = model
        self.elbo = elbo

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.elbo.differentiable_loss(self.model, None, x, y) / y.numel()

    def state_dict(self) -> dict[str, Any]:
        baselines = getattr(self.elbo, "baselines", None)
        return {} if baselines is None else baselines.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        baselines = getattr(self.elbo, "baselines", None)
        if baselines is not None:
            baselines.load_state_dict(state)


def _plate_nesting(model: nn.Module) -> int:
    """Plates of a model around its observations: the data plate, unless it says otherwise."""
    return getattr(model, "max_plate_nesting", 1)
