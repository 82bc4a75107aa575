"""The command ``fit``."""

import io
import platform
import shlex
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyro
import torch
import typer
from rich.console import Console
from rich.progress import Progress, TaskID

import prob_moe
from inference.fit.report import as_json, print_table, write_results
from inference.fit.sampled_text import write_sampled_text
from inference.registry.builtin import REGISTRY
from inference.registry.options import Plugins, listed, name_of
from inference.runs.checkpoint import CheckpointError
from inference.runs.config import FitConfig, Serve
from inference.runs.exits import end, errors
from inference.runs.lock import FolderLock
from inference.runs.outputs import check_not_of_another_command
from inference.runs.progress import console, progress_bar
from inference.runs.run_folder import RunFolder
from inference.tasks import Task
from inference.training.device import Dtype, check_device, default_dtype, move
from inference.training.interrupts import InterruptedFit, StopSignals
from inference.training.keeper import FitKeeper
from inference.training.objective import is_surrogate
from inference.training.run import FitResult, Status, run_fit, steps_per_epoch
from inference.training.sharing import one_layer
from inference.training.torchrun import LostProcessError, check_shared, is_first, num_started, processes, restarted
from inference.training.trainer import NonFiniteLossError

#: fits 80 columns
DETAILS = (
    "{task.fields[rate]} datapoints/s, loss {task.fields[loss]}, load {task.fields[load]}, {task.fields[drops]} % drop"
)


def fit(
    context: typer.Context,
    task: Annotated[
        str,
        typer.Argument(
            callback=name_of("task", lambda: REGISTRY.tasks), help=f"What to fit: {listed(REGISTRY.tasks)}."
        ),
    ],
    assignment: Annotated[
        str,
        typer.Option(
            callback=name_of("procedure", lambda: REGISTRY.procedures),
            help=f"Procedure that assigns: {listed(REGISTRY.procedures)}.",
        ),
    ] = "dependent-rounding",
    capacity_factor: Annotated[float, typer.Option(help="Capacity is ceil(factor * n / k).")] = 1.25,
    estimator: Annotated[
        str,
        typer.Option(
            callback=name_of("estimator", lambda: REGISTRY.estimators),
            help=f"How the gradient is estimated: {listed(REGISTRY.estimators)}.",
        ),
    ] = "weighted",
    baseline: Annotated[
        str | None,
        typer.Option(
            callback=name_of("baseline", lambda: REGISTRY.baselines),
            help=f"Subtracted from the cost: {listed(REGISTRY.baselines)}.",
            show_default="decaying; none with several experts",
        ),
    ] = None,
    num_selected: Annotated[
        int | None, typer.Option(help="Experts of every datapoint, at least 2; for mixture, and weighted.")
    ] = None,
    num_particles: Annotated[int | None, typer.Option(help="Draws a step; 2 with leave-one-out, else 1.")] = None,
    num_experts: Annotated[int | None, typer.Option(help="Experts of a layer.")] = None,
    hidden_features: Annotated[int | None, typer.Option(help="Width of an expert.")] = None,
    num_groups: Annotated[
        int | None,
        typer.Option(
            help="Groups of a batch, each routed by itself; under torchrun a multiple of the processes.",
            show_default="a batch as it is",
        ),
    ] = None,
    num_layers: Annotated[int, typer.Option(help="Layers of experts (digits: 1 or 2).")] = 1,
    load_balancing: Annotated[float, typer.Option(help="Weight of the load-balancing loss.")] = 0.0,
    num_epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Datapoints a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Learning rate of Adam.")] = None,
    serve: Annotated[Serve, typer.Option(help="Count loads of the mode, or of a draw.")] = Serve.MODE,
    seed: Annotated[int, typer.Option(help="First seed of parameters, order and draws.")] = 0,
    num_seeds: Annotated[int, typer.Option(help="Fits with seeds that count up from the first.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[Dtype, typer.Option(help="Floating-point type of data and parameters.")] = Dtype.FLOAT32,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="results/fit_TASK")] = None,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between two checkpoints.")] = 100,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for other processes, under torchrun.")] = 60,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in the folder; options not given are the run's.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    sample_text: Annotated[int, typer.Option(help="Bytes that each fitted language model writes to a text file.")] = 0,
    plugin: Plugins = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """
    Fit a mixture of experts and judge it on the test set. The test set is served as one batch.

    A run has a folder of its own, with its options, metrics, checkpoints, and events for TensorBoard. A fit that was
    stopped, by Ctrl-C, a signal, or a crash, goes on with --resume as if nothing had happened, bit for bit.

    Under torchrun processes share the groups of a batch and divide the experts, with the numbers of one process. Any
    number of them goes on with a run.

    Exit codes: 0 done, 1 another process is gone, 2 bad input, 130 and 143 after SIGINT and SIGTERM, with the
    checkpoint written.

    Example: python -m inference fit digits --assignment dependent-rounding --num-seeds 3

    Example: python -m inference fit digits --estimator mixture --num-selected 2

    Example: python -m inference fit digits --out results/fit_digits --resume

    Example: python -m inference fit language --assignment skip --num-layers 2 --sample-text 500

    Example: torchrun --nproc-per-node 2 -m inference fit digits --num-groups 4

    Example: python -m inference fit digits --plugin my_distribution.py --assignment spaced-skip
    """
    # Tensors and assignments are too small to share between threads.
    torch.set_num_threads(1)
    try:
        if checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be a positive int, got {checkpoint_every!r}")
        if sample_text < 0 or (sample_text and task != "language"):
            raise ValueError(f"--sample-text is a number of bytes, for the language task; got {sample_text} for {task}")
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
        if resume and overwrite:
            raise ValueError("give --resume or --overwrite, not both")
        run = RunFolder(Path("results") / f"fit_{task}" if out is None else out)
        resume = resume or (restarted() and run.holds_run())
        if run.holds_run() and not (resume or overwrite):
            raise ValueError(
                f"{run.path} holds a run: give --resume to go on, --overwrite to replace it, or another --out"
            )
        if not resume:
            check_not_of_another_command(run.path)
        config = FitConfig(
            task,
            assignment,
            capacity_factor,
            estimator,
            baseline or ("decaying" if num_selected is None else "none"),
            num_particles,
            num_experts,
            hidden_features,
            num_layers,
            load_balancing,
            num_epochs,
            batch_size,
            learning_rate,
            serve,
            seed,
            num_seeds,
            device,
            dtype,
            num_selected,
            num_groups,
        )
        stored = run.read_config() if resume else None
        if stored is not None:
            config = config.resumed(stored, _explicit(context), run.read_plugins())
        elif resume and not run.holds_run():
            raise ValueError(f"there is no run in {run.path} to go on with: leave --resume out to start one")
        check_shared(config.num_groups)
        with default_dtype(config.dtype):
            results, chosen, config = _fit_all(config, run, checkpoint_every, resume, timeout)
        if not is_first():
            return
        several = "" if config.num_selected is None else f"{config.num_selected} experts per datapoint, "
        title = (
            f"{config.task}: {config.assignment}, {config.estimator}, baseline {config.baseline}\n"
            f"{several}capacity factor {config.capacity_factor:g}, loads of the {config.serve}"
        )
        files = write_results(chosen, results, title, run)
        if sample_text:
            files.append(write_sampled_text(chosen, results, sample_text, config.serve is Serve.SAMPLE, run))
    except LostProcessError as error:
        end(str(error), 1)
    except InterruptedFit as stopped:
        plugins = "".join(f"--plugin {shlex.quote(needed)} " for needed in config.plugins())
        command = f"python -m inference fit {task} {plugins}--out {shlex.quote(str(run.path))} --resume"
        end(f"{stopped}; the checkpoint is written, go on with: {command}", 128 + stopped.signum)
    except (ValueError, NotImplementedError, CheckpointError, OSError) as error:
        # Pyro appends the shapes of the trace to what is wrong.
        end(str(error) or f"{assignment} cannot be trained with the estimator {estimator}")
    if as_json_:
        typer.echo(as_json(results, config.plain(), run))
    else:
        print_table(results, title)
        console.print(f"written to {run.path}: {', '.join(files)}")


def _explicit(context: typer.Context) -> set[str]:
    """The names of the options that were given, and not left to their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}


def _fit_all(
    config: FitConfig, run: RunFolder, checkpoint_every: int, resume: bool, timeout: float
) -> tuple[dict[int, FitResult], Task, FitConfig]:
    """Fit every seed; the options come back with the task's own in the place of None."""
    device = check_device(config.device)
    task: Task = REGISTRY.tasks[config.task].make()
    move(task, device)
    config = config.resolved(task)
    options = config.options(task)
    if is_surrogate(task, config.estimator) and is_first():
        errors.print(
            f"note: in the model of {config.task} datapoints meet elsewhere than in the capacity, so the estimator "
            f"{config.estimator} is a biased surrogate of the router objective; balanced is unbiased for its own"
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
    num_experts = 1 if num_started() == 1 else one_layer(task.build(options.model)).experts.num_experts
    total = options.num_epochs * steps_per_epoch(task, options.batch_size)
    nothing = _shown(Status(0, *[float("nan")] * 4))
    lock = FolderLock(run.path)
    with (
        processes(num_experts, device.type, timeout) as mesh,
        lock if is_first() else nullcontext(),
        StopSignals() as signals,
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
                resume=resume,
                writes=is_first(),
            )
            with keeper:
                try:
                    results[seed] = run_fit(task, options, seed, partial(_show, progress, bar), keeper, mesh)
                except NonFiniteLossError as error:
                    raise ValueError(f"{error}; {keeper.last_checkpoint()}") from error
    return results, task, config


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
