"""The loss of an estimator by name, and which names go together."""

from typing import Any, Protocol

from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from inference.registry import Objective
from inference.registry.builtin import REGISTRY
from prob_moe.estimators import TraceBalanced_ELBO, TraceMixture_ELBO, TraceRouting_ELBO
from prob_moe.estimators.sites import no_guide


class BatchLoss(Protocol):
    """From a batch (x, y) to minus the objective, nats per datapoint. Its state is what it knows of earlier steps."""

    def __call__(self, x: Tensor, y: Tensor) -> Tensor: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def check_rule(assignment: str, estimator: str | None, baseline: str, num_selected: int | None) -> None:
    """
    :param assignment: the name of a procedure, or of a rule.
    :raises ValueError: if there is no estimator for a procedure, or something is given that only a procedure has.
    """
    if assignment not in REGISTRY.rules:
        if estimator is None:
            raise ValueError(f"{assignment} wants an estimator, got None")
        return
    given = {"estimator": estimator, "num_selected": num_selected, "baseline": None if baseline == "none" else baseline}
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{assignment} is a rule, which draws nothing and is trained by the gradient of its own loss: leave "
                f"{name} out, got {value}"
            )


def check_several(
    assignment: str, estimator: str | None, baseline: str, num_selected: int | None, num_layers: int = 1
) -> None:
    """
    :param estimator: None for a rule.
    :param num_selected: experts of every datapoint, None for one.
    :param num_layers: those before the last one have one expert per datapoint.
    :raises ValueError: if procedure, estimator or baseline wants another number of experts.
    """
    procedures, estimators = REGISTRY.procedures, REGISTRY.estimators
    if estimator is None:
        return
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
    if baseline != "none" and num_layers == 1:
        raise ValueError(f"several experts per datapoint need no baseline, got {baseline}: leave it out")


def check_combination(baseline: str, num_particles: int) -> None:
    """
    :raises ValueError: if a baseline needs more particles.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles must be a positive int, got {num_particles!r}")
    if REGISTRY.baselines[baseline].needs_particles and num_particles < 2:
        raise ValueError(f"the {baseline} baseline compares particles: num_particles={num_particles} must be >= 2")


def batch_loss(model: nn.Module, estimator: str | None, baseline: str, num_particles: int = 1) -> BatchLoss:
    """
    Minus the objective that an estimator targets, in nats per datapoint, with the estimator's gradient.

    :param model: called with (x, y); its assignment sites carry the baseline's options.
    :param estimator: its name in the registry; None where nothing is drawn, and the objective is the model's own.
    :param baseline: likewise.
    :raises ValueError: see :func:`check_combination`.
    """
    check_combination(baseline, num_particles)
    if estimator is None:
        return ElboLoss(model, Trace_ELBO(num_particles=num_particles, max_plate_nesting=_plate_nesting(model)))
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


def is_surrogate(model: nn.Module, estimator: str | None) -> bool:
    """
    :returns: whether the model's datapoints meet elsewhere than in the capacity (``datapoints_meet``), so that an
        estimator that goes datapoint by datapoint is biased.
    """
    if estimator is None or not getattr(model, "datapoints_meet", False):
        return False
    return REGISTRY.estimators[estimator].objective in (Objective.ROUTER, Objective.MIXTURE)


class ElboLoss:
    """
    Minus the objective of an ELBO per datapoint.

    :param elbo: its baselines, where it has any, remember the costs of earlier steps.
    """

    def __init__(
        self, model: nn.Module, elbo: TraceRouting_ELBO | TraceBalanced_ELBO | TraceMixture_ELBO | Trace_ELBO
    ) -> None:
        self.model = model
        self.elbo = elbo

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        return self.elbo.differentiable_loss(self.model, no_guide, x, y) / y.numel()

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
