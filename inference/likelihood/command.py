"""The command ``likelihood``."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import pyro
import torch
import typer
from rich.table import Table

from inference.likelihood.laws import Likelihood, likelihoods
from inference.likelihood.matrix_file import read_assignment, read_logits
from inference.registry.builtin import label
from inference.registry.options import Plugins
from inference.runs.exits import end
from inference.runs.outputs import OUTPUTS, output_folder
from inference.runs.progress import console
from prob_moe.distributions import capacity_from_factor


def likelihood(
    logits: Annotated[Path | None, typer.Argument(help="Router logits, .csv or .npy, one row per datapoint.")] = None,
    assignment: Annotated[
        Path | None, typer.Option(help="The assignment, .csv or .npy.", show_default="matching of the logits")
    ] = None,
    capacity: Annotated[int | None, typer.Option(help="Datapoints an expert can process; or")] = None,
    capacity_factor: Annotated[float | None, typer.Option(help="capacity = ceil(factor * n / k), else 1.")] = None,
    num_datapoints: Annotated[int, typer.Option(help="Without a file: rows of random normal logits.")] = 6,
    num_experts: Annotated[int, typer.Option(help="Without a file: columns.")] = 3,
    scale: Annotated[float, typer.Option(help="Without a file: their standard deviation.")] = 1.0,
    num_draws: Annotated[int | None, typer.Option(help="Draws for weights, loads and counting.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of random logits and draws.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for table and picture.")] = Path("results"),
    plugin: Plugins = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """
    Ask every assignment distribution for the log-probability of an assignment, and for its weights.

    An entry e of the assignment means: processed by expert e; -1 - e: meant for e, and dropped. Small problems are
    checked by enumeration, where probabilities must sum to 1, and by counting draws.

    Example: python -m inference likelihood --num-datapoints 6 --num-experts 3

    Example: python -m inference likelihood logits.csv --assignment assignment.csv --capacity-factor 1.25 --json
    """
    # Drawing is slow to import; --help need not wait for it.
    from inference import plots
    from inference.likelihood import plots as likelihood_plots

    try:
        pyro.set_rng_seed(seed)
        phi = _random_logits(num_datapoints, num_experts, scale) if logits is None else read_logits(logits)
        z = None if assignment is None else read_assignment(assignment)
        n, k = phi.shape
        if capacity is not None and capacity_factor is not None:
            raise ValueError(f"give --capacity or --capacity-factor, not both (got {capacity} and {capacity_factor})")
        if capacity is None:
            capacity = capacity_from_factor(1.0 if capacity_factor is None else capacity_factor, n, k)
        folder = output_folder(out, OUTPUTS["likelihood"], overwrite=overwrite)
        results = likelihoods(phi, capacity, z, num_draws)
        folder.mkdir(parents=True, exist_ok=True)
        content = _content(results, capacity)
        (folder / "likelihood.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        plots.save(likelihood_plots.laws(results), folder / "likelihood.png")
    except (ValueError, OSError) as error:
        end(str(error))
    if as_json:
        typer.echo(json.dumps(content, allow_nan=False))
        return
    shown = content["assignment"] if n <= 32 else "from file" if assignment else "matching of the logits"
    console.print(f"n = {n} datapoints, k = {k} experts, capacity {capacity}; assignment: {shown}", highlight=False)
    console.print(f"router: Σ log p_i(z_i) = {content['router_log_prob']:.4f} nats", highlight=False)
    console.print(_law_table(results))
    console.print(_weight_table(results))
    for name, result in results.items():
        if result.note:
            console.print(f"{label(name)}: {result.note}", markup=False, highlight=False)
    console.print(f"written to {folder}: likelihood.json, likelihood.png")


def _random_logits(n: int, k: int, scale: float) -> torch.Tensor:
    if n < 1 or k < 1:
        raise ValueError(f"num_datapoints and num_experts must be positive ints, got {n} and {k}")
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale must be finite and >= 0, got {scale!r}")
    return scale * torch.randn(n, k, dtype=torch.float64)


def _content(results: dict[str, Likelihood], capacity: int) -> dict[str, Any]:
    first = next(iter(results.values()))
    procedures = {}
    for name, result in results.items():
        frequency, *interval = result.frequency()
        procedures[name] = {
            "log_prob": _finite(result.log_prob),
            "log_prob_error": result.error,
            "mode": result.mode.tolist(),
            "mode_log_prob": _finite(result.mode_log_prob),
            "sum_of_probabilities": result.total,
            "frequency": frequency,
            "frequency_interval": interval,
            "num_draws": len(result.draws),
            "weights": {key: _finite(value) for key, value in result.weight_summary().items()},
            "note": result.note,
        }
    return {
        "num_datapoints": first.routing.num_datapoints,
        "num_experts": first.routing.num_experts,
        "capacity": capacity,
        "assignment": first.assignment.tolist(),
        "router_log_prob": float(first.routing.router_log_prob(first.assignment).sum()),
        "procedures": procedures,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no infinity."""
    return value if value is not None and math.isfinite(value) else None


def _law_table(results: dict[str, Likelihood]) -> Table:
    draws = len(next(iter(results.values())).draws)
    table = Table(
        padding=(0, 0, 0, 1),
        title="The law: probability of the assignment z (nats; ± standard error)",
        caption=f"ΣP: over all values, where they are few; drawn: z's share of {draws:,} draws [95 %, Wilson]",
    )
    table.add_column("procedure", no_wrap=True)
    for name in ("log P(z)", "log P(mode)", "ΣP", "P(z)", "drawn"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, result in results.items():
        frequency, low, high = result.frequency()
        table.add_row(
            label(name),
            _number(result.log_prob, result.error),
            _number(result.mode_log_prob),
            "" if result.total is None else f"{result.total:.4f}",
            "" if result.log_prob is None else f"{math.exp(result.log_prob):.3g}",
            f"{frequency:.3g} [{low:.2g}, {high:.2g}]",
        )
    return table


def _number(value: float | None, error: float = 0.0) -> str:
    if value is None:
        return "none"
    # An error below what is shown is none.
    return f"{value:.4f} ± {error:.1g}" if error > 5e-5 else f"{value:.4f}"


def _weight_table(results: dict[str, Likelihood]) -> Table:
    summaries = {name: result.weight_summary() for name, result in results.items()}
    table = Table(title="Importance weights w of the draws", padding=(0, 0, 0, 1))
    table.add_column("procedure", no_wrap=True)
    for name in next(iter(summaries.values())):
        table.add_column(name, justify="right", no_wrap=True)
    for name, summary in summaries.items():
        table.add_row(label(name), *(f"{value:.3f}" for value in summary.values()))
    return table
