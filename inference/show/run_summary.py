"""A run in words and numbers."""

import math
from typing import Any

import numpy as np

from inference.registry.builtin import REGISTRY
from inference.runs.run_reader import Run
from inference.show.routing_view import RoutingView
from inference.show.run_figures import load_columns, sites_of
from inference.training.collapse import unused
from prob_moe.diagnostics import RoutingDiagnostics


def describe(run: Run) -> list[tuple[str, str]]:
    """The run in words: a name and what there is to say, in the order of reading."""
    config = run.config
    trained: list[tuple[str, str]] = []
    if config.estimator is not None:
        entry = REGISTRY.estimators[config.estimator]
        trained = [("estimator", entry.name), ("objective", entry.words)]
    state = "done" if run.results.exists() else "not done yet, or stopped"
    seeds = ", ".join(f"{seed} ({steps} steps)" for seed, steps in steps_done(run).items())
    return [
        ("task", str(config.task)),
        ("assignment", f"{config.assignment}: {REGISTRY.to_fit(config.assignment).words}"),
        *trained,
        ("loads of", f"the {config.serve}"),
        ("seeds", seeds),
        ("state", state),
        *((("experts in use", told),) if (told := _unused(run)) else ()),
    ]


def _unused(run: Run) -> str:
    """By seed, where fewer than half of the experts are used over the last epoch; nothing where none is."""
    told = []
    for seed, rows in run.steps.groupby("seed") if len(run.steps) else ():
        looks = rows[rows.epoch == rows.epoch.max()]
        loads = {site: looks[load_columns(looks, site)].sum().tolist() for site in sites_of(looks)}
        told += [f"seed {seed}, fewer than half: {what}" for what in unused(loads)]
    return "; ".join(told)


def steps_done(run: Run) -> dict[int, int]:
    """By seed, as far as the metrics go."""
    if run.steps.empty:
        return dict.fromkeys(run.config.seeds, 0)
    done = run.steps.groupby("seed").step.max()
    return {seed: int(done.get(seed, 0)) for seed in run.config.seeds}


def mean_and_error(run: Run) -> dict[str, tuple[float, float]]:
    """Of every metric of the test set over the seeds: mean and standard error, NaN for one seed."""
    if run.test is None:
        return {}
    # A Pareto k of bounded weights is minus infinity.
    with np.errstate(invalid="ignore"):
        return {name: (float(values.mean()), float(values.sem())) for name, values in run.test.items()}


def summary(run: Run, seed: int, view: RoutingView | None) -> dict[str, Any]:
    """
    For machines: plain values, null where a number is not finite.

    :param seed: the one that is shown.
    :param view: of that seed, None without a model.
    """
    plain: dict[str, Any] = _finite(
        {
            "run": str(run.folder.path),
            "options": run.config.plain(),
            "versions": run.versions,
            "done": run.results.exists(),
            "steps": {str(number): steps for number, steps in steps_done(run).items()},
            "test": {
                name: {"mean": mean, "standard error": error, "seeds": _by_seed(run, name)}
                for name, (mean, error) in mean_and_error(run).items()
            },
            "shown seed": seed,
            "last epoch": _last_epoch(run, seed),
            "last routing": _last_routing(run, seed),
            "weights of a draw": None if view is None else _weights(view),
            "problems": run.problems,
        }
    )
    return plain


def _last_epoch(run: Run, seed: int) -> dict[str, float]:
    rows = run.epochs[run.epochs.seed == seed] if len(run.epochs) else run.epochs
    return dict(rows.iloc[-1]) if len(rows) else {}


def _last_routing(run: Run, seed: int) -> dict[str, dict[str, Any]]:
    """By assignment site, what the last look at it saw."""
    rows = run.steps[run.steps.seed == seed].dropna(subset="max_mean_load") if len(run.steps) else run.steps
    if rows.empty:
        return {}
    last = rows.iloc[-1]
    return {
        # A run of an earlier version lacks what was added since.
        site: {name: float(last.get(f"{name}/{site}", math.nan)) for name in RoutingDiagnostics._fields}
        | {"loads": [float(last[name]) for name in load_columns(rows, site)]}
        for site in sites_of(rows)
    }


def _weights(view: RoutingView) -> dict[str, float | None]:
    numbers = {"n": len(view.weights), "ess": view.ess, "zeros": view.zeros, "pareto_k": view.pareto_k}
    return numbers | {"pareto_k_law": view.pareto_k_law}


def _by_seed(run: Run, name: str) -> dict[str, float]:
    return {} if run.test is None else {str(seed): float(value) for seed, value in run.test[name].items()}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
