"""The command line."""

import typer

from inference.exits import OneLineErrors
from inference.fit.command import fit
from inference.gradients.command import gradients
from inference.likelihood.command import likelihood
from inference.posterior.command import posterior
from inference.show.command import show
from inference.study.command import study

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    help="Train and study mixtures of experts whose routing is a random variable.",
)
for command in (fit, show, study, gradients, likelihood, posterior):
    app.command()(command)
