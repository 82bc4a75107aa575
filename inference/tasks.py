"""What can be fitted: data, model, and how a fitted model is judged."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from inference.registry import BaselineEntry, RuleEntry
from inference.registry.builtin import REGISTRY
from inference.training.batches import BatchStream, Minibatches
from inference.training.schedule import constant
from models.digits import NUM_PIXELS, digits_data, digits_mixture
from models.language import LanguageModel
from models.metrics import classification_metrics
from models.piecewise import piecewise_data, piecewise_mixture
from models.stacked import StackedMixture
from prob_moe.distributions import AssignmentDistribution
from prob_moe.mixture import MixtureOfExperts

Model = MixtureOfExperts | StackedMixture | LanguageModel
AnyModel = TypeVar("AnyModel", bound=nn.Module)


@dataclass(frozen=True)
class ModelOptions:
    """What a model is built from, by the names of the registry; None takes the task's own."""

    assignment: str = "dependent-rounding"
    baseline: str = "decaying"
    capacity_factor: float = 1.25
    load_balancing: float = 0.0
    num_experts: int | None = None
    hidden_features: int | None = None
    num_layers: int = 1
    num_selected: int | None = None
    experts_in: str | None = None
    router: str | None = None
    router_scale: float | None = None

    @property
    def procedure(self) -> Callable[..., AssignmentDistribution]:
        """
        :raises ValueError: if a rule is to assign.
        """
        if self.rule is not None:
            able = ", ".join(REGISTRY.procedures)
            raise ValueError(
                f"{self.assignment} is a rule, which the language task alone is trained with: use one of {able}"
            )
        return REGISTRY.procedures[self.assignment].make

    @property
    def rule(self) -> RuleEntry | None:
        """What assigns, where it is a rule."""
        # A Shelf raises an error of its own where a name is missing, so that get has no default.
        return REGISTRY.rules[self.assignment] if self.assignment in REGISTRY.rules else None  # noqa: SIM401

    @property
    def baseline_entry(self) -> BaselineEntry:
        return REGISTRY.baselines[self.baseline]


def with_baselines(model: AnyModel, baseline: BaselineEntry, in_features: int) -> AnyModel:
    """
    Give every assignment site of a model a baseline of its own, which may remember that site's costs; one that selects
    several experts has no use for it.

    :param in_features: the width of the inputs of its layers.
    :returns: the model.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "baseline")]
    for layer in layers:
        without = baseline.name == "none" or getattr(layer, "num_selected", None) is not None
        layer.baseline = None if without else baseline.build(in_features)
    return model


def with_several(model: AnyModel, num_selected: int | None) -> AnyModel:
    """
    :param num_selected: m, experts of every datapoint in the last layer; None leaves the model at one.
    :returns: the model.
    :raises ValueError: if it has fewer experts.
    """
    if num_selected is None:
        return model
    last = model.second if isinstance(model, StackedMixture) else model
    assert isinstance(last, MixtureOfExperts)
    if num_selected > last.experts.num_experts:
        raise ValueError(f"num_selected={num_selected} exceeds the number of experts, {last.experts.num_experts}")
    last.num_selected = num_selected
    return model


def served(model: MixtureOfExperts | StackedMixture, x: Tensor) -> TorchDistribution:
    """:returns: what is predicted by as many experts of every layer as a datapoint was trained with."""
    if isinstance(model, StackedMixture):
        return model.predict(x, num_selected=(1, model.second.num_selected or 1))
    return model.predict(x, num_selected=model.num_selected or 1)


def check_no_blocks(task: str, options: ModelOptions) -> None:
    """
    :raises ValueError: if options are given that only a stack of blocks has.
    """
    for name in ("experts_in", "router", "router_scale"):
        value = getattr(options, name)
        if value is not None:
            raise ValueError(f"{name} is an option of the language task, got {value!r} for {task}: leave it out")


class Task(Protocol):
    """A data set in three parts of (x, y), with a model for it."""

    name: str
    num_epochs: int  #: default
    batch_size: int  #: default
    learning_rate: float  #: default
    group_label: str  #: what the datapoints are grouped by in the picture of expert use
    group_names: list[str]
    image_shape: tuple[int, int] | None = None  #: height and width, where an input is an image

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def build(self, options: ModelOptions) -> Model:
        """A model with new parameters."""

    def batches(self, batch_size: int) -> BatchStream:
        """Endless minibatches of the training part; a task may bring a stream of its own."""
        return Minibatches(*self.train, batch_size=batch_size)

    @staticmethod
    def schedule(step: int, num_steps: int) -> float:
        """:returns: the share of the learning rate that a step has, see :mod:`inference.training.schedule`."""
        return constant(step, num_steps)

    def groups(self, x: Tensor, y: Tensor) -> Tensor:
        """:returns: the group of every datapoint, long, as many as y has entries."""

    def metrics(self, model: Model, x: Tensor, y: Tensor, sample: bool) -> dict[str, float]:
        """
        :param sample: whether a language model draws the expert of a byte, instead of taking its router's favourite.
        :returns: by name, with routing summed out and as served: by the favourite expert alone, or with several experts
            per datapoint by as many favourites; nobody is dropped.
        """


class Digits(Task):
    """scikit-learn's handwritten digits."""

    name = "digits"
    num_epochs = 40
    batch_size = 128
    learning_rate = 3e-3
    group_label = "digit"
    group_names = [str(digit) for digit in range(10)]  # noqa: RUF012
    image_shape = (8, 8)

    def __init__(self) -> None:
        self.train, self.validation, self.test = digits_data()

    def build(self, options: ModelOptions) -> Model:
        check_no_blocks(self.name, options)
        model = digits_mixture(
            options.procedure,
            num_experts=4 if options.num_experts is None else options.num_experts,
            hidden_features=64 if options.hidden_features is None else options.hidden_features,
            num_layers=options.num_layers,
            capacity_factor=options.capacity_factor,
            load_balancing=options.load_balancing,
        )
        return with_baselines(with_several(model, options.num_selected), options.baseline_entry, NUM_PIXELS)

    def groups(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    @torch.no_grad()
    def metrics(self, model: Model, x: Tensor, y: Tensor, sample: bool) -> dict[str, float]:
        assert not isinstance(model, LanguageModel)
        summed_out = classification_metrics(model.predict(x).logits, y)
        as_served = classification_metrics(served(model, x).logits, y)
        return {
            "accuracy, served": as_served.accuracy.item(),
            "NLL, served (nats)": as_served.nll.item(),
            "ECE, served": as_served.ece.item(),
            "accuracy, routing summed out": summed_out.accuracy.item(),
            "NLL, routing summed out (nats)": summed_out.nll.item(),
            "ECE, routing summed out": summed_out.ece.item(),
        }


class Piecewise(Task):
    """The toy task of two lines, with two linear experts."""

    name = "piecewise"
    num_epochs = 400
    batch_size = 100
    learning_rate = 0.1
    group_label = "line"
    group_names = ["left", "right"]  # noqa: RUF012

    def __init__(self, num_datapoints: int = 300) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.train, self.validation, self.test = (piecewise_data((), num_datapoints) for _ in range(3))

    def build(self, options: ModelOptions) -> Model:
        check_no_blocks(self.name, options)
        if options.num_layers != 1 or options.num_experts not in (None, 2) or options.hidden_features is not None:
            raise ValueError(
                "the piecewise task has one layer of two linear experts: no layers, experts or hidden size"
            )
        mixture = piecewise_mixture(
            options.procedure,
            capacity_factor=options.capacity_factor,
            load_balancing=options.load_balancing,
        )
        return with_baselines(with_several(mixture, options.num_selected), options.baseline_entry, 1)

    def groups(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.squeeze(-1) >= 0.5).long()

    @torch.no_grad()
    def metrics(self, model: Model, x: Tensor, y: Tensor, sample: bool) -> dict[str, float]:
        assert not isinstance(model, LanguageModel)
        as_served = served(model, x)
        return {
            "RMSE, served": (as_served.mean - y).square().mean().sqrt().item(),
            "NLL, served (nats)": -as_served.log_prob(y).mean().item(),
            "NLL, routing summed out (nats)": -model.marginal_log_likelihood(x, y).mean().item(),
        }
