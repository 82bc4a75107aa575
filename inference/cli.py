"""The command line."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.table import Table

from inference.exits import OneLineErrors
from inference.fit import NonFiniteLossError
from inference.fit_command import fit
from inference.gradients_command import gradients
from inference.likelihood_command import likelihood
from inference.posterior_command import posterior
from inference.progress import console, progress_bar
from inference.show_command import show
from inference.study import ARMS, Settings, contrasts, run_study, summary

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    help="Train and study mixtures of experts whose routing is a random variable.",
)
app.command()(fit)
app.command()(likelihood)
app.command()(show)
app.command()(posterior)
app.command()(gradients)


@app.command()
def study(
    num_seeds: Annotated[int, typer.Option(help="Data sets and initial parameters, trained side by side.")] = 100,
    num_steps: Annotated[int, typer.Option(help="Steps of Adam.")] = Settings.num_steps,
    learning_rate: Annotated[float, typer.Option(help="Learning rate of Adam.")] = Settings.learning_rate,
    capacity_factor: Annotated[float, typer.Option(help="Capacity is ceil(factor * n / k).")] = 1.0,
    break_at: Annotated[float, typer.Option(help="Where the lines of the task change, in (0, 1).")] = 0.5,
    load_balancing: Annotated[float, typer.Option(help="Weight of the load-balancing loss.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of data, parameters and draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for table, curves and pictures.")] = Path("results"),
) -> None:
    """
    Train the piecewise toy task in every way: exact gradient, unbiased estimators, and their biased twins.

    Example: python -m inference study --num-seeds 20 --break-at 0.3
    """
    # Drawing is slow to import; --help need not wait for it.
    from inference import plots

    # The tensors of the toy are too small to share between threads.
    torch.set_num_threads(1)
    try:
        settings = Settings(
            num_seeds=num_seeds,
            num_steps=num_steps,
            learning_rate=learning_rate,
            capacity_factor=capacity_factor,
            break_at=break_at,
            load_balancing=load_balancing,
            seed=seed,
        )
        out.mkdir(parents=True, exist_ok=True)
        with progress_bar() as progress:
            task = progress.add_task("", total=len(ARMS) * settings.num_steps)
            data, results = run_study(settings, lambda arm: progress.update(task, advance=1, description=arm))
    except (ValueError, NonFiniteLossError, OSError) as error:
        console.print(f"[red]{error}[/red]")
        raise typer.Exit(2) from None
    table = summary(results)
    table.to_csv(out / "study.csv", index=False)
    curves = pd.concat([result.curve for result in results])
    curves.to_csv(out / "study_curves.csv", index=False)
    differences = contrasts(curves)
    differences.to_csv(out / "study_contrasts.csv", index=False)
    plots.save(plots.learning_curves(results, data, settings.break_at), out / "study_curves.png")
    plots.save(plots.fits(results, data, settings.break_at), out / "study_fits.png")
    console.print(_study_table(table, settings))
    for row in differences.itertuples():
        console.print(f"final NLL, {row.arm} minus {row.minus}, paired over seeds: {row.nll:.3f} ± {row.nll_se:.3f}")
    console.print(f"written to {out}: study.csv, study_curves.csv, study_contrasts.csv and .png of curves and fits")


def _study_table(table: pd.DataFrame, settings: Settings) -> Table:
    shown = Table(
        title=f"Piecewise task, router objective, {settings.num_seeds} seeds, {settings.num_steps} steps\n"
        f"(± one standard error; solved: NLL within {settings.solved_within} nats per datapoint of the true process)"
    )
    for column in ("trained with", "solved", "final NLL, mean", "final NLL, median"):
        shown.add_column(column, justify="left" if column == "trained with" else "right")
    for row in table.itertuples():
        shown.add_row(
            row.arm,
            f"{100 * row.solved:.0f} % ± {100 * row.solved_se:.0f}",
            f"{row.nll:.3f} ± {row.nll_se:.3f}",
            f"{row.nll_median:.3f}",
        )
    return shown
