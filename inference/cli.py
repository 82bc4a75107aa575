"""The command line."""

from typing import Annotated

import typer

import prob_moe
from inference.claims.command import claims
from inference.compare.command import compare
from inference.fit.command import fit
from inference.fit.table_command import fit_table_command
from inference.gradients.command import gradients
from inference.likelihood.command import likelihood
from inference.posterior.command import posterior
from inference.predict.command import predict
from inference.registry.plugins import PluginError, load_installed
from inference.routing_study.command import study_routing
from inference.runs.exits import OneLineErrors, end
from inference.scale.command import scale
from inference.show.command import show
from inference.study.command import study

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"prob_moe {prob_moe.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Train and study mixtures of experts whose routing is a random variable."""
    try:
        load_installed()
    except PluginError as error:
        end(str(error))


for command in (fit, predict, show, compare, study, claims, gradients, likelihood, posterior, scale):
    app.command()(command)
# A table has options of its own.
app.command("fit table")(fit_table_command)
# And so has the study that goes through stages.
app.command("study routing")(study_routing)
