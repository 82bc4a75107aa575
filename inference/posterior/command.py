"""The command ``posterior``."""

import json
import os
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import pyro
import torch
import typer
from rich.table import Table

from inference.runs.exits import end
from inference.runs.outputs import OUTPUTS, output_folder
from inference.runs.progress import console, progress_bar
from inference.runs.records import records
from models.piecewise import piecewise_data


def posterior(
    num_experts: Annotated[int, typer.Option(help="Experts of the model whose posterior is shown.")] = 2,
    compare: Annotated[str, typer.Option(help="Numbers of experts to compare by LOO; '' for none.")] = "1,2,3",
    num_datapoints: Annotated[int, typer.Option(help="Datapoints of the toy task.")] = 100,
    break_at: Annotated[float, typer.Option(help="Where the lines of the task change, in (0, 1).")] = 0.5,
    num_chains: Annotated[int, typer.Option(help="Chains, at least 2.")] = 4,
    num_warmup: Annotated[int, typer.Option(help="Steps of a chain before it draws.")] = 300,
    num_draws: Annotated[int, typer.Option(help="Draws of a chain.")] = 300,
    num_jobs: Annotated[int | None, typer.Option(help="Processes.", show_default="all cores, up to num_chains")] = None,
    seed: Annotated[int, typer.Option(help="Seed of data and chains.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for draws (netCDF), tables and pictures.")] = Path("results"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """
    Sample the posterior of the piecewise task by NUTS, with routing summed out, and compare numbers of experts.

    The draws go to posterior_K.nc, for arviz.from_netcdf: posterior with the experts in order, posterior_as_drawn,
    log_likelihood, posterior_predictive, sample_stats, observed_data. About a minute on two cores.

    Example: python -m inference posterior --break-at 0.3

    Example: python -m inference posterior --num-experts 3 --compare '' --num-draws 1000
    """
    # NUTS, arviz and pictures are slow to import; --help need not wait for them.
    from inference import plots
    from inference.posterior import plots as posterior_plots
    from inference.posterior import report as posterior_report
    from inference.posterior.sampling import Sampling, sample_posterior

    # The tensors of the toy are too small to share between threads.
    torch.set_num_threads(1)
    try:
        counts = sorted({num_experts, *_counts(compare)})
        jobs = min(num_chains, os.cpu_count() or 1) if num_jobs is None else num_jobs
        sampling = Sampling(num_chains, num_warmup, num_draws, num_jobs=jobs, seed=seed)
        if num_datapoints < 2:
            raise ValueError(f"num_datapoints must be an int of at least 2, got {num_datapoints!r}")
        # Draws of another number of experts stay, beside the new ones.
        files = [*(f"posterior_{k}.nc" for k in counts), *OUTPUTS["posterior"][1:]]
        folder = output_folder(out, files, overwrite=overwrite)
        pyro.set_rng_seed(seed)
        data = piecewise_data((), num_datapoints, break_at)
        draws = {}
        with progress_bar() as progress:
            for k in counts:
                task = progress.add_task(f"{k} expert{'s' if k > 1 else ''}, chains", total=num_chains)
                draws[k] = sample_posterior(data, k, sampling, advance=partial(progress.advance, task))
        folder.mkdir(parents=True, exist_ok=True)
        for k in counts:
            draws[k].to_netcdf(str(folder / f"posterior_{k}.nc"))
        summary = posterior_report.summary(draws[num_experts])
        loos = {k: posterior_report.loo(draws[k]) for k in counts}
        comparison = posterior_report.compare(loos)
        summary.to_csv(folder / "posterior_summary.csv")
        comparison.to_csv(folder / "posterior_loo.csv")
        plots.save(posterior_plots.traces(draws[num_experts]), folder / "posterior_traces.png")
        plots.save(posterior_plots.predictive(draws[num_experts]), folder / "posterior_predictive.png")
        x = data.x.squeeze(-1).numpy()
        plots.save(posterior_plots.comparison(comparison, loos, x), folder / "posterior_loo.png")
    except (ValueError, OSError) as error:
        end(str(error))
    divergences = {k: int(draws[k].sample_stats.diverging.sum()) for k in counts}
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "summary": records(summary.reset_index()),
                    "loo": records(comparison.reset_index()),
                    "divergences": {str(k): count for k, count in divergences.items()},
                    "out": str(folder),
                },
                allow_nan=False,
            )
        )
        return
    experts = f"{num_experts} expert{'s' if num_experts > 1 else ''}"
    title = f"Posterior of {experts}, {num_datapoints} datapoints, {num_chains} chains of {num_draws} draws"
    console.print(_summary_table(summary, f"{title}, {divergences[num_experts]} of them divergent"))
    console.print(_loo_table(comparison, divergences))
    console.print(
        f"written to {folder}: posterior_K.nc, posterior_summary.csv, posterior_loo.csv, and pictures "
        "posterior_traces.png, posterior_predictive.png, posterior_loo.png"
    )


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"compare must be numbers of experts with commas between, as 1,2,3, got {text!r}") from None
    return counts


def _summary_table(summary: pd.DataFrame, title: str) -> Table:
    table = Table(title=title, caption="raw: r-hat with the labels as the chains drew them")
    table.add_column("parameter", no_wrap=True)
    for name in ("mean", "sd", "ESS bulk", "ESS tail", "r-hat", "raw"):
        table.add_column(name, justify="right")
    for name, row in summary.iterrows():
        raw = "" if pd.isna(row.r_hat_as_drawn) else f"{row.r_hat_as_drawn:.2f}"
        # Brackets of a name are not markup.
        table.add_row(
            str(name).replace("[", r"\["),
            f"{row['mean']:.3f}",
            f"{row.sd:.3f}",
            f"{row.ess_bulk:.0f}",
            f"{row.ess_tail:.0f}",
            f"{row.r_hat:.3f}",
            raw,
        )
    return table


def _loo_table(comparison: pd.DataFrame, divergences: dict[int, int]) -> Table:
    table = Table(
        "experts",
        title="Leave-one-out comparison, best first (nats, ± one standard error)",
        caption="max k: largest Pareto k of a datapoint; k bad: datapoints whose estimate cannot be trusted; "
        "div.: divergences",
    )
    for name in ("elpd", "behind", "p_loo", "weight", "max k", "k bad", "div."):
        table.add_column(name, justify="right")
    for k, row in comparison.iterrows():
        table.add_row(
            str(k),
            f"{row.elpd:.1f} ± {row.se:.1f}",
            f"{row.behind:.1f} ± {row.behind_se:.1f}",
            f"{row.p_loo:.1f}",
            f"{row.weight:.2f}",
            f"{row.largest_pareto_k:.2f}",
            f"{row.untrusted:.0f}",
            str(divergences[k]),
        )
    return table
