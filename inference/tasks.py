"""What can be fitted: data, model, and how a fitted model is judged."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from inference.registry import BaselineEntry
from inference.registry.builtin import REGISTRY
from inference.training.batches import BatchStream, Minibatches
from inference.training.crops import Crops
from inference.training.schedule import constant, warm_up_and_cosine
from models.digits import NUM_PIXELS, digits_data, digits_mixture
from models.language import LanguageModel
from models.metrics import classification_metrics
from models.piecewise import piecewise_data, piecewise_mixture
from models.stacked import StackedMixture
from models.text import (
    KIND_NAMES,
    bigram_cross_entropy,
    bigram_entropy,
    byte_kinds,
    text_data,
    unigram_entropy,
    windows,
)
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

    @property
    def procedure(self) -> Callable[..., AssignmentDistribution]:
        return REGISTRY.procedures[self.assignment].make

    @property
    def baseline_entry(self) -> BaselineEntry:
        return REGISTRY.baselines[self.baseline]


def with_baselines(model: AnyModel, baseline: BaselineEntry, in_features: int) -> AnyModel:
    """
    Give every assignment site of a model a baseline of its own, which may remember that site's costs.

    :param in_features: the width of the inputs of its layers.
    :returns: the model.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "baseline")]
    for layer in layers:
        layer.baseline = None if baseline.name == "none" else baseline.build(in_features)
    return model


def with_several(model: AnyModel, num_selected: int | None) -> AnyModel:
    """
    :param num_selected: m, experts of every datapoint; None leaves the model at one.
    :returns: the model.
    :raises ValueError: if it has fewer experts.
    """
    if num_selected is None:
        return model
    assert isinstance(model, MixtureOfExperts)
    if num_selected > model.experts.num_experts:
        raise ValueError(f"num_selected={num_selected} exceeds the number of experts, {model.experts.num_experts}")
    model.num_selected = num_selected
    return model


def num_served(model: Model) -> int:
    """:returns: how many experts serve a datapoint: as many as were trained to."""
    return getattr(model, "num_selected", None) or 1


def _to_text(part: tuple[Tensor, Tensor]) -> Tensor:
    """The text that was cut into windows without overlap, long (n,)."""
    x, y = part
    return torch.cat([x.flatten(), y[-1, -1:]])


class Task(Protocol):
    """A data set in three parts of (x, y), with a model for it."""

    name: str
    num_epochs: int  #: default
    batch_size: int  #: default
    learning_rate: float  #: default
    group_label: str  #: what the datapoints are grouped by in the picture of expert use
    group_names: list[str]
    image_shape: tuple[int, int] | None = None  #: height and width, where an input is an image
    datapoints_meet: bool = False  #: whether they do so in its model, elsewhere than in the capacity

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
        if options.num_selected is not None and options.num_layers != 1:
            raise ValueError(
                f"the digits task takes num_selected with one layer, got num_selected={options.num_selected} and "
                f"num_layers={options.num_layers}"
            )
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
        as_served = classification_metrics(model.predict(x, num_selected=num_served(model)).logits, y)
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
        served = model.predict(x, num_selected=num_served(model))
        return {
            "RMSE, served": (served.mean - y).square().mean().sqrt().item(),
            "NLL, served (nats)": -served.log_prob(y).mean().item(),
            "NLL, routing summed out (nats)": -model.marginal_log_likelihood(x, y).mean().item(),
        }


class Language(Task):
    """
    The next byte of the text of Python's help. Validation and test parts are served causally, every byte by its own
    router, in windows that do not overlap.
    """

    name = "language"
    num_epochs = 8
    batch_size = 16
    learning_rate = 6e-3
    group_label = "kind of byte"
    group_names = KIND_NAMES
    datapoints_meet = True
    context = 128
    schedule = staticmethod(warm_up_and_cosine)

    def __init__(self) -> None:
        self.train, self.validation, self.test = (windows(part, self.context, self.context) for part in text_data())
        self._train_text = _to_text(self.train)

    def build(self, options: ModelOptions) -> Model:
        if options.num_selected is not None:
            raise ValueError(
                f"the language task gives every byte one expert, got num_selected={options.num_selected}: leave it out"
            )
        if options.baseline_entry.network or options.load_balancing:
            raise ValueError(
                f"the language task has no baseline that is a network and no load-balancing loss (got baseline "
                f"{options.baseline} and load_balancing={options.load_balancing})"
            )
        model = LanguageModel(
            options.procedure,
            num_experts=4 if options.num_experts is None else options.num_experts,
            hidden_features=256 if options.hidden_features is None else options.hidden_features,
            num_expert_blocks=options.num_layers,
            context=self.context,
            capacity_factor=options.capacity_factor,
        )
        return with_baselines(model, options.baseline_entry, 0)

    def batches(self, batch_size: int) -> BatchStream:
        return Crops(_to_text(self.train), length=self.context, batch_size=batch_size)

    def groups(self, x: Tensor, y: Tensor) -> Tensor:
        return byte_kinds(x).flatten()

    def metrics(self, model: Model, x: Tensor, y: Tensor, sample: bool) -> dict[str, float]:
        text = _to_text((x, y)).cpu()
        assert isinstance(model, LanguageModel)
        nats = -model.predict(x, sample=sample).log_prob(y).mean()
        return {
            "bits per byte": nats.item() / math.log(2),
            "reference: unigram entropy of this part (bits)": unigram_entropy(text),
            "reference: bigram entropy of this part (bits)": bigram_entropy(text),
            "reference: bigram fitted to the training part (bits)": bigram_cross_entropy(self._train_text, text),
        }
