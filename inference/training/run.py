"""One fit: train a task's model, look at it on the way, judge it on the test set."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any, Protocol

import pandas as pd
import pyro
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from inference.tasks import Model, ModelOptions, Task
from inference.training.collapse import CollapseWarning
from inference.training.evaluate import draw_metrics, evaluate
from inference.training.look import Row, look_at
from inference.training.objective import batch_loss, check_combination, check_rule, check_several
from inference.training.param_store import param_store_state, set_param_store
from inference.training.random_state import random_state, set_random_state
from inference.training.sharing import InGroups, Sharing
from inference.training.trainer import Trainer
from prob_moe.diagnostics import RoutingRecorder

#: steps between two looks at the routing
LOOK_EVERY = 10


@dataclass(frozen=True)
class FitOptions:
    """How to train and serve."""

    num_epochs: int
    batch_size: int
    learning_rate: float
    model: ModelOptions = field(default_factory=ModelOptions)
    #: None for a rule
    estimator: str | None = "weighted"
    num_particles: int = 1
    #: whether loads are those of a draw of the assignment, instead of its mode
    sample: bool = False
    #: groups into which a batch is cut, each routed by itself; None for a batch as it is
    num_groups: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive int, got {getattr(self, name)!r}")
        if self.num_groups is not None and self.num_groups < 1:
            raise ValueError(f"num_groups must be a positive int, got {self.num_groups!r}")
        check_combination(self.model.baseline, self.num_particles)
        routing = self.model.assignment, self.estimator, self.model.baseline, self.model.num_selected
        check_rule(*routing)
        check_several(*routing, self.model.num_layers)


@dataclass(frozen=True)
class Status:
    """What a progress bar shows of the running fit."""

    step: int  #: steps done
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


class Fit:
    """
    A fit on its way. What a step depends on is in :meth:`state_dict`, so that a fit that goes on from one is, bit for
    bit, the one that was never interrupted.

    :param task: its training part is where the model goes, too.
    :param seed: of parameters, order of the data, and draws. The global generators are seeded, and Pyro's parameter
        store emptied.
    :param mesh: of the processes that share the fit, each of which runs this; None for one alone.
    """

    def __init__(self, task: Task, options: FitOptions, seed: int, mesh: DeviceMesh | None = None) -> None:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        self.task, self.options, self.seed = task, options, seed
        self.sharing = Sharing() if options.num_groups is None else InGroups(options.num_groups, seed, mesh)
        self.model = self.sharing.divide(self._build())
        self._loss = batch_loss(
            self.sharing.in_groups(self.model), options.estimator, options.model.baseline, options.num_particles
        )
        self._batches = task.batches(options.batch_size)
        self.steps_per_epoch = len(self._batches)
        self.num_steps = options.num_epochs * self.steps_per_epoch
        self._recorder = RoutingRecorder()
        self._collapse = CollapseWarning()
        schedule = partial(task.schedule, num_steps=self.num_steps)
        self._trainer = Trainer(
            self.model,
            self._next_loss,
            learning_rate=options.learning_rate,
            schedule=schedule,
            sharing=self.sharing,
        )
        self.curve: list[Row] = []
        self._losses: list[float] = []  # of this epoch
        self._looks: list[tuple[float, float]] = []
        self._num_datapoints = 0
        self._wall, self._cpu = -time.perf_counter(), -time.process_time()

    def _build(self) -> Model:
        return self.task.build(self.options.model).to(self.task.train[0].device)

    @property
    def step_count(self) -> int:
        """Steps done."""
        return self._trainer.num_steps

    @property
    def epoch_count(self) -> int:
        """Epochs done."""
        return len(self.curve)

    def step(self) -> Row:
        """:returns: what there is to know of the step, see :mod:`inference.runs.run_folder`."""
        if not self.step_count % self.steps_per_epoch:
            self._losses, self._looks = [], []
        before, seen = time.perf_counter(), self._num_datapoints
        loss = self._trainer.step()
        now = time.perf_counter()
        self._losses.append(loss)
        row = {
            "step": self.step_count,
            "epoch": self.epoch_count + 1,
            "loss": loss,
            "seconds": self._wall + now,
            "datapoints_per_second": (self._num_datapoints - seen) / (now - before),
        }
        if len(self._losses) % LOOK_EVERY == 1:
            look = self.sharing.mean(look_at(self._recorder))
            self._looks.append((look["max_mean_load"], look["drop_rate"]))
            row |= look
            self._collapse.add(look)
        if not self.step_count % self.steps_per_epoch:
            self._end_epoch()
        return row

    def status(self) -> Status:
        """Of the last step."""
        rate = self._num_datapoints / (self._wall + time.perf_counter())
        return Status(self.step_count, self._losses[-1], rate, *self._looks[-1])

    def result(self) -> FitResult:
        """The fit as it is now, judged on the test set."""
        seconds = {
            "training, wall seconds": self._wall + time.perf_counter(),
            "training, CPU seconds": self._cpu + time.process_time(),
        }
        with self.sharing.served(self.model, self._build) as model:
            metrics, use = evaluate(self.task, model, self.task.test, self.options.sample)
            metrics |= draw_metrics(model, self.task.test[0]) | seconds
        return FitResult(model, metrics, pd.DataFrame(self.curve), use)

    def _next_loss(self) -> Tensor:
        x, y = next(self._batches)
        self._num_datapoints += y.numel()
        with self._recorder, self.sharing.step(self.step_count):
            return self._loss(x, y)

    def _end_epoch(self) -> None:
        load, drops = (mean(values) for values in zip(*self._looks))
        with self.sharing.served(self.model, self._build) as model:
            validation, _ = evaluate(self.task, model, self.task.validation, self.options.sample)
        row = {"epoch": self.epoch_count + 1, "seed": self.seed, "loss": mean(self._losses), "load": load}
        self.curve.append(row | {"drops": drops} | validation)
        self._collapse.end_epoch(self.epoch_count)

    # Surviving -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on, of any number of processes: tensors and plain containers."""
        trainer, loss = self.sharing.gather(self.model, self._trainer.state_dict(), self._loss.state_dict())
        return {
            "trainer": trainer,
            "loss": loss,
            "batches": self._batches.state_dict(),
            "param_store": self._param_store(),
            "curve": self.curve,
            "losses": self._losses,
            "looks": self._looks,
            "num_datapoints": self._num_datapoints,
            "wall": self._wall + time.perf_counter(),
            "cpu": self._cpu + time.process_time(),
            "generators": random_state(),
        }

    def _param_store(self) -> dict[str, Any]:
        state = param_store_state(self.model)
        # The names of parameters differ between numbers of processes; Pyro enters them anew.
        return state if self.options.num_groups is None else state | {"of the module": {}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Go on where another fit of the same task and options was.

        :raises ValueError: if the state is of another model.
        """
        try:
            trainer, loss = self.sharing.scatter(self.model, state["trainer"], state["loss"])
            self._trainer.load_state_dict(trainer)
            self._loss.load_state_dict(loss)
            self._batches.load_state_dict(state["batches"])
            set_param_store(self.model, state["param_store"])
            self.curve, self._losses, self._looks = state["curve"], state["losses"], state["looks"]
            self._num_datapoints = state["num_datapoints"]
            self._wall = state["wall"] - time.perf_counter()
            self._cpu = state["cpu"] - time.process_time()
            # Last, since building the model has drawn.
            set_random_state(state["generators"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the state is not one of this model: {str(error).splitlines()[0]}") from error


class Keeper(Protocol):
    """What keeps a fit from being lost."""

    def resume(self, fit: Fit) -> None:
        """Called before the first step."""

    def keep(self, fit: Fit, row: Row) -> None:
        """Called after every step, with what it returned."""


def steps_per_epoch(task: Task, batch_size: int) -> int:
    """:returns: batches in a pass over the training part, counting a last smaller one."""
    return len(task.batches(batch_size))


def run_fit(
    task: Task,
    options: FitOptions,
    seed: int,
    advance: Callable[[Status], None] = lambda status: None,
    keeper: Keeper | None = None,
    mesh: DeviceMesh | None = None,
) -> FitResult:
    """
    :param seed: of parameters, order of the data, and draws.
    :param advance: called after every step.
    :param keeper: writes down what happens, and may let the fit start further on.
    :param mesh: of the processes that share the fit, each of which runs this; None for one alone.
    """
    fit = Fit(task, options, seed, mesh)
    if keeper is not None:
        keeper.resume(fit)
    while fit.step_count < fit.num_steps:
        row = fit.step()
        if keeper is not None:
            keeper.keep(fit, row)
        advance(fit.status())
    return fit.result()
