"""What can be fitted: data, model, and how a fitted model is judged."""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from inference.training.batches import BatchStream, Minibatches
from inference.training.crops import Crops
from inference.training.objective import Assignment, Baseline
from inference.training.schedule import constant, warm_up_and_cosine
from models.digits import CostBaseline, digits_data, digits_mixture
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
from prob_moe.mixture import MixtureOfExperts

Model = MixtureOfExperts | StackedMixture | LanguageModel


@dataclass(frozen=True)
class ModelOptions:
    """What a model is built from; None takes the task's own."""

    assignment: Assignment = Assignment.GUMBEL_MATCHING
    baseline: Baseline = Baseline.DECAYING
    capacity_factor: float = 1.25
    load_balancing: float = 0.0
    num_experts: int | None = None
    hidden_features: int | None = None
    num_layers: int = 1


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
        :returns: by name, with routing summed out and as served: by the favourite expert alone, nobody dropped.
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
        return digits_mixture(
            options.assignment.distribution,
            num_experts=4 if options.num_experts is None else options.num_experts,
            hidden_features=64 if options.hidden_features is None else options.hidden_features,
            num_layers=options.num_layers,
            capacity_factor=options.capacity_factor,
            load_balancing=options.load_balancing,
            baseline=options.baseline.options,
            neural_baseline=options.baseline is Baseline.NEURAL,
        )

    def groups(self, x: Tensor, y: Tensor) -> Tensor:
        return y

    @torch.no_grad()
    def metrics(self, model: Model, x: Tensor, y: Tensor, sample: bool) -> dict[str, float]:
        assert not isinstance(model, LanguageModel)
        summed_out = classification_metrics(model.predict(x).logits, y)
        as_served = classification_metrics(model.predict(x, num_selected=1).logits, y)
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
            options.assignment.distribution,
            capacity_factor=options.capacity_factor,
            load_balancing=options.load_balancing,
        )
        mixture.baseline = CostBaseline(1) if options.baseline is Baseline.NEURAL else options.baseline.options
        return mixture

    def groups(self, x: Tensor, y: Tensor) -> Tensor:
        return (x.squeeze(-1) >= 0.5).long()

    @torch.no_grad()
    def metrics(self, model: Model, x: Tensor, y: Tensor, sample: bool) -> dict[str, float]:
        assert not isinstance(model, LanguageModel)
        served = model.predict(x, num_selected=1)
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
    context = 128
    schedule = staticmethod(warm_up_and_cosine)

    def __init__(self) -> None:
        self.train, self.validation, self.test = (windows(part, self.context, self.context) for part in text_data())
        self._train_text = _to_text(self.train)

    def build(self, options: ModelOptions) -> Model:
        if options.baseline is Baseline.NEURAL or options.load_balancing:
            raise ValueError(
                f"the language task has no neural baseline and no load-balancing loss (got baseline {options.baseline} "
                f"and load_balancing={options.load_balancing})"
            )
        return LanguageModel(
            options.assignment.distribution,
            num_experts=4 if options.num_experts is None else options.num_experts,
            hidden_features=256 if options.hidden_features is None else options.hidden_features,
            num_expert_blocks=options.num_layers,
            context=self.context,
            capacity_factor=options.capacity_factor,
            baseline=options.baseline.options,
        )

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


TASKS: dict[str, Any] = {task.name: task for task in (Digits, Piecewise, Language)}
