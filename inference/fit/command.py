"""The command ``fit``."""

import shlex
from pathlib import Path
from typing import Annotated

import torch
import typer

from inference.fit.report import as_json, print_table, write_results
from inference.fit.sampled_text import write_sampled_text
from inference.fit.seeds import fit_seeds
from inference.registry.builtin import REGISTRY
from inference.registry.options import Plugins, listed, name_of
from inference.runs.checkpoint import CheckpointError
from inference.runs.config import FitConfig, Serve
from inference.runs.outputs import check_not_of_another_command
from inference.runs.progress import console
from inference.runs.run_folder import RunFolder
from inference.training.device import Dtype, default_dtype
from inference.training.interrupts import InterruptedFit
from inference.training.torchrun import LostProcessError, check_shared, end_each, is_first, restarted


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
            callback=name_of("procedure or rule", lambda: REGISTRY.fitted),
            help=f"Procedure that assigns, or for language a rule: {listed(REGISTRY.fitted)}.",
        ),
    ] = "dependent-rounding",
    capacity_factor: Annotated[
        float, typer.Option(help="Capacity is ceil(factor * n / k), with several experts ceil(factor * n m / k).")
    ] = 1.25,
    estimator: Annotated[
        str | None,
        typer.Option(
            callback=name_of("estimator", lambda: REGISTRY.estimators),
            help=f"How the gradient is estimated: {listed(REGISTRY.estimators)}.",
            show_default="weighted; none with a rule",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            callback=name_of("baseline", lambda: REGISTRY.baselines),
            help=f"Subtracted from the cost: {listed(REGISTRY.baselines)}.",
            show_default="decaying; none with a rule, or one layer of several experts",
        ),
    ] = None,
    num_selected: Annotated[
        int | None,
        typer.Option(help="Experts of every datapoint in the last layer, at least 2; for mixture, and weighted."),
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
    num_layers: Annotated[int, typer.Option(help="Layers of experts: 1 or 2.")] = 1,
    experts_in: Annotated[
        str | None, typer.Option(help="Language: the first or the last blocks have experts.", show_default="first")
    ] = None,
    router: Annotated[
        str | None, typer.Option(help="Language: routers see bytes or hidden features.", show_default="bytes")
    ] = None,
    load_balancing: Annotated[float, typer.Option(help="Weight of the load-balancing loss.")] = 0.0,
    router_scale: Annotated[
        float | None,
        typer.Option(
            help="Language: standard deviation of logits at the start.",
            show_default="5 of bytes, 0.6 of hidden features",
        ),
    ] = None,
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

    Exit codes: 0 done, 2 bad input, or another process is gone, 130 and 143 after SIGINT and SIGTERM, with the
    checkpoint written.

    Example: python -m inference fit digits --assignment dependent-rounding --num-seeds 3

    Example: python -m inference fit digits --estimator mixture --num-selected 2

    Example: python -m inference fit digits --out results/fit_digits --resume

    Example: python -m inference fit language --assignment skip --num-layers 2 --sample-text 500

    Example: torchrun --nproc-per-node 2 -m inference fit digits --num-groups 4

    Example: python -m inference fit language --experts-in last --estimator mixture --num-selected 2

    Example: python -m inference fit language --experts-in last --router hidden --assignment switch

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
            estimator or (None if assignment in REGISTRY.rules else "weighted"),
            baseline or _default_baseline(assignment, num_selected, num_layers),
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
            experts_in,
            router,
            router_scale,
        )
        stored = run.read_config() if resume else None
        if stored is not None:
            config = config.resumed(stored, _explicit(context), run.read_plugins())
        elif resume and not run.holds_run():
            raise ValueError(f"there is no run in {run.path} to go on with: leave --resume out to start one")
        check_shared(config.num_groups)
        with default_dtype(config.dtype):
            results, chosen, config = fit_seeds(config, run, checkpoint_every, resume, timeout)
        if not is_first():
            return
        several = "" if config.num_selected is None else f"{config.num_selected} experts per datapoint, "
        trained = "" if config.estimator is None else f", {config.estimator}, baseline {config.baseline}"
        title = (
            f"{config.task}: {config.assignment}{trained}\n"
            f"{several}capacity factor {config.capacity_factor:g}, loads of the {config.serve}"
        )
        files = write_results(chosen, results, title, run)
        if sample_text:
            files.append(write_sampled_text(chosen, results, sample_text, config.serve is Serve.SAMPLE, run))
    except LostProcessError as error:
        end_each(str(error), 2, together=False)
    except InterruptedFit as stopped:
        plugins = "".join(f"--plugin {shlex.quote(needed)} " for needed in config.plugins())
        command = f"python -m inference fit {task} {plugins}--out {shlex.quote(str(run.path))} --resume"
        end_each(f"{stopped}; the checkpoint is written, go on with: {command}", 128 + stopped.signum)
    except (ValueError, NotImplementedError, CheckpointError, OSError) as error:
        # Pyro appends the shapes of the trace to what is wrong.
        end_each(str(error) or f"{config.assignment} cannot be trained with the estimator {config.estimator}", 2)
    if as_json_:
        typer.echo(as_json(results, config.plain(), run))
    else:
        print_table(results, title)
        console.print(f"written to {run.path}: {', '.join(files)}")


def _default_baseline(assignment: str, num_selected: int | None, num_layers: int) -> str:
    of_sites_with_one_expert = assignment not in REGISTRY.rules and (num_selected is None or num_layers > 1)
    return "decaying" if of_sites_with_one_expert else "none"


def _explicit(context: typer.Context) -> set[str]:
    """The names of the options that were given, and not left to their defaults."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
