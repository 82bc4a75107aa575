"""The command line."""

import typer

from inference.exits import OneLineErrors
from inference.fit_command import fit
from inference.study_command import study

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    help="Train and study mixtures of experts whose routing is a random variable.",
)
app.command()(fit)
app.command()(study)
