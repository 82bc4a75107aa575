"""One fit: train a task's model, look at it on the way, judge it on the test set."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from statistics import mean

import pandas as pd
import pyro
from torch import Tensor

from inference.evaluate import draw_metrics, evaluate
from inference.fit import minibatches, steps
from inference.objective import Estimator, batch_loss, check_combination
from inference.tasks import Model, ModelOptions, Task
from prob_moe.diagnostics import RoutingRecorder

#: steps between two looks at load and drops
LOOK_EVERY = 10


@dataclass(frozen=True)
class FitOptions:
    """How to train and serve."""

    num_epochs: int
    batch_size: int
    learning_rate: float
    model: ModelOptions = field(default_factory=ModelOptions)
    estimator: Estimator = Estimator.WEIGHTED
    num_particles: int = 1
    #: whether to draw the assignment that is served, instead of its mode
    sample: bool = False

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive int, got {getattr(self, name)!r}")
        check_combination(self.estimator, self.model.baseline, self.num_particles)


@dataclass(frozen=True)
class Status:
    """What a progress bar shows of the running fit."""

    loss: float  #: nats per datapoint
    rate: float  #: datapoints per second
    max_mean_load: float
    drop_rate: float


@dataclass(frozen=True)
class FitResult:
    """
    :param metrics: on the test set, by name.
    :param curve: a row an epoch: means of training loss, load and drops over its steps; validation metrics.
    :param use: expert use on the test set, see :func:`~inference.evaluate.evaluate`.
    """

    model: Model
    metrics: dict[str, float]
    curve: pd.DataFrame
    use: list[Tensor]


def steps_per_epoch(task: Task, batch_size: int) -> int:
    """:returns: batches in a pass over the training part, counting a last smaller one."""
    return -(-len(task.train[0]) // batch_size)


def run_fit(
    task: Task, options: FitOptions, seed: int, advance: Callable[[Status], None] = lambda status: None
) -> FitResult:
    """
    :param seed: of parameters, order of the data, and draws.
    :param advance: called after every step.
    """
    pyro.set_rng_seed(seed)
    model = task.build(options.model)
    loss = batch_loss(model, options.estimator, options.model.baseline, options.num_particles)
    batches = minibatches(*task.train, batch_size=options.batch_size)
    per_epoch = steps_per_epoch(task, options.batch_size)
    recorder = RoutingRecorder()

    def step_loss() -> Tensor:
        batch = next(batches)
        with recorder:
            return loss(*batch)

    rows = []
    wall, cpu = time.perf_counter(), time.process_time()
    training = steps(model, step_loss, num_steps=options.num_epochs * per_epoch, learning_rate=options.learning_rate)
    for epoch in range(1, options.num_epochs + 1):
        losses, looks = [], []
        for _, value in islice(training, per_epoch):
            losses.append(value)
            if len(losses) % LOOK_EVERY == 1:
                looks.append(_load_and_drops(recorder))
            seen = (epoch - 1 + len(losses) / per_epoch) * len(task.train[0])
            advance(Status(value, seen / (time.perf_counter() - wall), *looks[-1]))
        load, drops = (mean(values) for values in zip(*looks))
        validation, _ = evaluate(task, model, task.validation, options.sample)
        rows.append({"seed": seed, "epoch": epoch, "loss": mean(losses), "load": load, "drops": drops} | validation)
    seconds = {
        "training, wall seconds": time.perf_counter() - wall,
        "training, CPU seconds": time.process_time() - cpu,
    }
    metrics, use = evaluate(task, model, task.test, options.sample)
    return FitResult(model, metrics | draw_metrics(model, task.test[0]) | seconds, pd.DataFrame(rows), use)


def _load_and_drops(recorder: RoutingRecorder) -> tuple[float, float]:
    """Of a training step: max/mean load of the fullest layer, share of datapoints that not all layers processed."""
    layers = list(recorder.diagnostics().values())
    load = max(float(layer.max_mean_load.mean()) for layer in layers)
    return load, 1 - prod(1 - float(layer.drop_rate.mean()) for layer in layers)
