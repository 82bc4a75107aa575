"""The command ``fit table``."""

import json
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from inference.runs.checkpoint import CheckpointError
from inference.runs.exits import end, errors
from inference.runs.lock import FolderLock
from inference.runs.outputs import check_not_of_another_command
from inference.runs.progress import console
from inference.runs.run_folder import RunFolder
from inference.training.interrupts import InterruptedFit, StopSignals


class LawOfY(StrEnum):
    """What y is like, given an expert."""

    GAUSSIAN = "gaussian"
    STUDENT = "student"
    POISSON = "poisson"
    BINOMIAL = "binomial"
    GAMMA = "gamma"
    CLASSES = "classes"


class Form(StrEnum):
    """Of an expert."""

    LINEAR = "linear"
    MLP = "mlp"


class RouterForm(StrEnum):
    """Of a router."""

    LINEAR = "linear"
    CONSTANT = "constant"
    MLP = "mlp"


def fit_table_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="The table: a header, then a line for every row.")],
    target: Annotated[str, typer.Option(help="Column to be explained.")],
    family: Annotated[
        LawOfY | None, typer.Option(help="Law of the target.", show_default="gaussian of numbers, classes of words")
    ] = None,
    num_experts: Annotated[int, typer.Option(help="Experts.")] = 2,
    experts: Annotated[Form, typer.Option(help="Linear experts, or with a hidden layer.")] = Form.LINEAR,
    router: Annotated[RouterForm, typer.Option(help="Likewise; constant: the same for all rows.")] = RouterForm.LINEAR,
    router_columns: Annotated[
        str | None, typer.Option(help="Columns that decide on the expert: a,b.", show_default="all")
    ] = None,
    expert_columns: Annotated[
        str | None, typer.Option(help="Columns that experts see: a,b.", show_default="all")
    ] = None,
    drop: Annotated[str, typer.Option(help="Columns to leave out: a,b.")] = "",
    categories: Annotated[str, typer.Option(help="Columns of numbers that are categories: a,b.")] = "",
    most_values: Annotated[int, typer.Option(help="Values of a category; others are one.")] = 20,
    offset: Annotated[str | None, typer.Option(help="Column added to the linear predictors.")] = None,
    trials: Annotated[str | None, typer.Option(help="Column with trials, of binomial.")] = None,
    weights: Annotated[str | None, typer.Option(help="Column that says how often a row counts.")] = None,
    validation: Annotated[float, typer.Option(help="Share of the rows that is held out, by the seed.")] = 0.2,
    split_column: Annotated[str | None, typer.Option(help="Column that says train or validation instead.")] = None,
    num_selected: Annotated[
        int | None, typer.Option(help="Experts of a row in training, by the mixture bound.", show_default="all")
    ] = None,
    restarts: Annotated[int | None, typer.Option(help="Starts.", show_default="200, of large tables fewer")] = None,
    num_epochs: Annotated[
        int | None, typer.Option(help="Of networks and the bound: passes over the rows.", show_default="1000 steps")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of split and starts.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("results/fit_table"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with networks that were stopped; the same options are needed.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """
    Fit a mixture of experts to a table of one's own.

    Numbers are standardised, by the fit itself. A missing number becomes the mean, beside a column that says so; words
    become a column of 0 and 1 for every value. What is dropped is said. Dates are refused. No data leaves the machine.

    Linear experts are fitted by exact maximum likelihood from many starts; others in minibatches, and when they were
    stopped, by Ctrl-C, a signal, or a crash, they go on with --resume as if nothing had happened.

    Exit codes: 0 done, 2 bad input, 130 and 143 after SIGINT and SIGTERM, with the checkpoint of networks written.

    Example: python -m inference fit table houses.csv --target price --num-experts 3 --out results/houses

    Example: python -m inference show results/houses

    Example: python -m inference predict results/houses new_houses.csv --out predictions.csv
    """
    torch.set_num_threads(1)
    # Slow to import; --help need not wait for it.
    from inference.tables.fitting import TableOptions, fit_table
    from inference.tables.keeper import TableKeeper, holds_checkpoint
    from inference.tables.reading import read_table
    from inference.tables.table_run import is_table_run

    try:
        run_folder = RunFolder(out)
        if run_folder.holds_run():
            raise ValueError(f"{out} holds a run of another fit: give another --out")
        if resume and overwrite:
            raise ValueError("give --resume or --overwrite, not both")
        if holds_checkpoint(out) and not (resume or overwrite):
            raise ValueError(
                f"{out} holds a fit that was stopped: give --resume to go on, --overwrite to start anew, or another "
                "--out"
            )
        if not is_table_run(out):
            check_not_of_another_command(out)
        elif not overwrite:
            raise ValueError(f"{out} holds a fit of a table: give --overwrite to replace it, or another --out")
        if not 0 <= validation < 1:
            raise ValueError(f"--validation must be at least 0 and less than 1, got {validation:g}")
        for name, value, least in (("num-experts", num_experts, 1), ("most-values", most_values, 2), ("seed", seed, 0)):
            if value < least:
                raise ValueError(f"--{name} must be at least {least}, got {value}")
        extra = {"offset": offset, "trials": trials, "weights": weights}
        estimator: dict[str, Any] = dict(num_experts=num_experts, experts=str(experts), router=str(router))
        estimator |= dict(num_selected=num_selected, restarts=restarts, num_epochs=num_epochs)
        options = TableOptions(
            target,
            None if family is None else str(family),
            None if router_columns is None else _names(router_columns),
            None if expert_columns is None else _names(expert_columns),
            _names(drop),
            _names(categories),
            most_values,
            {name: column for name, column in extra.items() if column is not None},
            validation,
            split_column,
            seed,
            estimator,
        )
        if family is LawOfY.CLASSES and (offset or trials):
            raise ValueError("--offset and --trials are for numbers, not for --family classes")
        networks = Form.MLP in (experts, router) or num_selected is not None
        stop = StopSignals()
        # What is fitted exactly has nothing to be kept, and is stopped at once.
        with FolderLock(out) as lock, stop if networks else nullcontext():
            keeper = TableKeeper(out, file, options, resume, stop)
            run = fit_table(read_table(file), file.name, options, keeper)
            out.mkdir(parents=True, exist_ok=True)
            lock.take()
            run.save(out)
            keeper.clear()
    except InterruptedFit as stopped:
        end(f"{stopped}; the checkpoint is written, go on with the same command and --resume", 128 + stopped.signum)
    except (ValueError, CheckpointError, OSError) as error:
        end(str(error))
    if as_json:
        typer.echo(json.dumps(run.numbers(), allow_nan=False))
        return
    for note in run.notes:
        errors.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(str(run.estimator.summary()), markup=False, highlight=False, soft_wrap=True)
    for part, metrics in run.metrics.items():
        words = ", ".join(f"{name} {value:.5g}" for name, value in metrics.items())
        console.print(f"\n{part}: {words}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"written to {out}", markup=False, highlight=False, soft_wrap=True)


def _names(words: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in words.split(",") if name.strip())
