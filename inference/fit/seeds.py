"""The fits of all seeds, with their progress and their folder."""

import io
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch.distributed.device_mesh import DeviceMesh

import prob_moe
from inference.registry.builtin import REGISTRY
from inference.runs.config import FitConfig
from inference.runs.exits import errors, note
from inference.runs.lock import FolderLock
from inference.runs.progress import progress_bar
from inference.runs.run_folder import RunFolder
from inference.tasks import Task
from inference.training.device import check_device, move
from inference.training.interrupts import StopSignals
from inference.training.keeper import FitKeeper
from inference.training.objective import is_surrogate
from inference.training.run import FitResult, Status, run_fit, steps_per_epoch
from inference.training.sharing import one_layer
from inference.training.torchrun import is_first, num_started, processes
from inference.training.trainer import NonFiniteLossError
from prob_moe.parallel.mesh import agree

#: fits 80 columns
DETAILS = (
    "{task.fields[rate]} datapoints/s, loss {task.fields[loss]}, load {task.fields[load]}, {task.fields[drops]} % drop"
)


def fit_seeds(
    config: FitConfig, run: RunFolder, checkpoint_every: int, resume: bool, timeout: float
) -> tuple[dict[int, FitResult], Task, FitConfig]:
    """
    Fit every seed.

    :param checkpoint_every: steps between two checkpoints.
    :param resume: whether to go on with what is in the folder.
    :param timeout: seconds to wait for another process.
    :returns: the fits by seed, the task, and the options with the task's own in the place of None.
    :raises ValueError: if options do not go together, or a loss is not finite.
    """
    device = check_device(config.device)
    task: Task = REGISTRY.tasks[config.task].make()
    move(task, device)
    config = config.resolved(task)
    options = config.options(task)
    model = task.build(options.model)
    if is_surrogate(model, config.estimator) and is_first():
        note(
            f"note: in the model of {config.task} datapoints meet elsewhere than in the capacity, so the estimator "
            f"{config.estimator} is a biased surrogate of its objective; balanced is unbiased for its own"
        )

    @cache
    def begin() -> None:
        """Once, when the first step of all is done: until then an earlier run stays as it is."""
        run.path.mkdir(parents=True, exist_ok=True)
        lock.take()
        if not resume:
            run.clear()
        run.write_config(config.plain(), _versions(), config.plugins())

    results = {}
    num_experts = 1 if num_started() == 1 else one_layer(model).experts.num_experts
    total = options.num_epochs * steps_per_epoch(task, options.batch_size)
    nothing = _shown(Status(0, *[float("nan")] * 4))
    with (
        StopSignals() as signals,
        processes(num_experts, device.type, timeout, {**config.plain(), "resume": resume, **_versions()}) as mesh,
        _locked(run.path, mesh) as lock,
        progress_bar(DETAILS, 6, errors if is_first() else Console(file=io.StringIO())) as progress,
    ):
        for seed in config.seeds:
            bar = progress.add_task(f"seed {seed}", total=total, **nothing)
            keeper = FitKeeper(
                run.seed(seed),
                config.of_seed(seed),
                checkpoint_every,
                signals,
                begin=begin,
                tell=note,
                resume=resume,
                writes=is_first(),
            )
            with keeper:
                try:
                    results[seed] = run_fit(task, options, seed, partial(_show, progress, bar), keeper, mesh)
                except NonFiniteLossError as error:
                    raise ValueError(f"{error}; {keeper.last_checkpoint()}") from error
    return results, task, config


@contextmanager
def _locked(folder: Path, mesh: DeviceMesh | None) -> Iterator[FolderLock]:
    """The lock of the folder, which the first process takes; if it cannot, all of them end."""
    lock, problem = FolderLock(folder), None
    with ExitStack() as stack:
        if is_first():
            try:
                stack.enter_context(lock)
            except ValueError as error:
                problem = error
        if mesh is not None:
            agree(None if problem is None else str(problem))
        elif problem is not None:
            raise problem
        yield lock


def _show(progress: Progress, bar: TaskID, status: Status) -> None:
    progress.update(bar, **_shown(status))


def _shown(status: Status) -> dict[str, Any]:
    return {
        "completed": status.step,
        "rate": f"{status.rate:,.0f}",
        "loss": f"{status.loss:.3f}",
        "load": f"{status.max_mean_load:.2f}",
        "drops": f"{100 * status.drop_rate:.1f}",
    }


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "numpy": np.__version__,
        "prob_moe": prob_moe.__version__,
    }
