"""What can be fitted: data, model, and how a fitted model is judged."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from inference.batches import BatchStream, Minibatches
from inference.objective import Assignment, Baseline
from models.digits import CostBaseline, categorical, digits_data, digits_mixture, log_predictive
from models.metrics import classification_metrics
from models.piecewise import gaussian, piecewise_data, piecewise_mixture
from models.stacked import StackedMixture
from prob_moe.mixture import MixtureOfExperts

Model = MixtureOfExperts | StackedMixture


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


class Task(Protocol):
    """A data set in three parts of (x, y), with a model for it."""

    name: str
    num_epochs: int  #: default
    batch_size: int  #: default
    learning_rate: float  #: default
    group_label: str  #: what the datapoints are grouped by in the picture of expert use
    group_names: list[str]

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def build(self, options: ModelOptions) -> Model:
        """A model with new parameters."""

    def batches(self, batch_size: int) -> BatchStream:
        """Endless minibatches of the training part; a task may bring a stream of its own."""
        return Minibatches(*self.train, batch_size=batch_size)

    def groups(self, x: Tensor, y: Tensor) -> Tensor:
        """:returns: the group of every datapoint, long (n,)."""

    def metrics(self, model: Model, x: Tensor, y: Tensor, served: Tensor) -> dict[str, float]:
        """
        :param served: the outputs that were served, (n, out).
        :returns: by name, with routing summed out and as served.
        """


class Digits(Task):
    """scikit-learn's handwritten digits."""

    name = "digits"
    num_epochs = 40
    batch_size = 128
    learning_rate = 3e-3
    group_label = "digit"
    group_names = [str(digit) for digit in range(10)]  # noqa: RUF012

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

    def metrics(self, model: Model, x: Tensor, y: Tensor, served: Tensor) -> dict[str, float]:
        summed_out = classification_metrics(log_predictive(model, x), y)
        # A dropped datapoint has output 0 everywhere, which says nothing: the uniform distribution.
        as_served = classification_metrics(categorical(served).logits, y)
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
    def metrics(self, model: Model, x: Tensor, y: Tensor, served: Tensor) -> dict[str, float]:
        return {
            "RMSE, served": (served.squeeze(-1) - y).square().mean().sqrt().item(),
            "NLL, served (nats)": -gaussian(served).log_prob(y).mean().item(),
            "NLL, routing summed out (nats)": -model.marginal_log_likelihood(x, y).mean().item(),
        }


TASKS: dict[str, Any] = {task.name: task for task in (Digits, Piecewise)}
