"""What a comparison of gradients found, as tables for the terminal."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.table import Table

#: in the table of all settings and in the pictures, where one baseline has to do
SHOWN_BASELINE = "decaying"


def base_table(frame: pd.DataFrame) -> Table:
    """All estimators at the first setting, gradient of the router's parameters."""
    rows = frame[(frame.varies == "base") & (frame.part == "router")]
    first = rows.iloc[0]
    table = Table(
        title=f"Gradients of the router's parameters, n={first.n} k={first.k} capacity {first.capacity} "
        f"sharpness {first.sharpness:g} imbalance {first.imbalance:g}, {rows.num_samples.min()} draws",
        caption="Bias: of the worst coordinate in standard errors (s.e.); its norm by that of the exact gradient, ± "
        "what chance alone gives. Cosine: mean of single draws. Variance: trace, nats² per datapoint, at equal cost "
        "(doubled for leave-one-out, whose draws take two particles); ratio to independent routing with the same "
        "baseline. —: not known or not defined.",
    )
    for header in ("estimator", "baseline", "objective"):
        table.add_column(header)
    for header in ("bias, s.e.", "bias", "to router obj.", "cosine", "variance", "ratio"):
        table.add_column(header, justify="right")
    for row in rows.itertuples():
        table.add_row(
            row.estimator,
            row.baseline or "—",
            row.objective,
            number(row.bias_se, ".1f"),
            with_error(row.bias_fraction, row.bias_fraction_se),
            number(row.router_bias_fraction, ".0%"),
            number(row.mean_cosine, ".2f"),
            number(row.variance, ".3g"),
            number(row.relative_variance, ".2f"),
        )
    return table


def settings_table(frame: pd.DataFrame) -> Table:
    """Every setting: ratios of variance, and how far the unbiased estimators and the biased ones are off."""
    rows = frame[(frame.part == "router") & (frame.objective == "router")]
    shown = rows[rows.baseline == SHOWN_BASELINE]
    unbiased = list(shown[~shown.biased & (shown.estimator != "independent")].estimator.unique())
    table = Table(
        title=f"All settings, router objective: variance by that of independent routing, baseline {SHOWN_BASELINE}",
        caption="Last columns: bias of the router's worst coordinate, in standard errors, over all baselines: largest "
        "of the unbiased estimators, range of the biased twins.",
    )
    table.add_column("setting")
    for header in (*unbiased, "unbiased", "biased twins"):
        table.add_column(header, justify="right")
    for (varies, setting), group in by_setting(rows):
        ratios = group[group.baseline == SHOWN_BASELINE].set_index("estimator").relative_variance
        honest, twins = group[~group.biased].bias_se, group[group.biased].bias_se
        table.add_row(
            varies if varies in ("base", "small") else f"{varies} {setting[varies]:g}",
            *(number(ratios[name], ".2f") for name in unbiased),
            f"≤ {number(honest.max(), '.1f')}",
            f"{number(twins.min(), '.1f')} – {number(twins.max(), '.1f')}",
        )
    return table


def by_setting(frame: pd.DataFrame) -> Iterable[tuple[tuple[str, dict[str, Any]], pd.DataFrame]]:
    """Rows by setting, in order, with what varies and its properties."""
    columns = ["n", "k", "capacity_factor", "sharpness", "imbalance"]
    for (varies, *values), group in frame.groupby(["varies", *columns], sort=False):
        yield (varies, dict(zip(columns, values))), group


def number(value: float, form: str) -> str:
    """A number, a dash for NaN, ∞ for infinity."""
    if math.isnan(value):
        return "—"
    return "∞" if math.isinf(value) else format(value, form)


def with_error(value: float, error: float) -> str:
    """A share with its error, a dash for NaN."""
    return "—" if math.isnan(value) else f"{number(value, '.0%')} ± {number(error, '.0%')}"
