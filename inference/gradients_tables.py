"""What a comparison of gradients found, as tables for the terminal."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

#: in the table of all settings and in the pictures, where one baseline has to do
SHOWN_BASELINE = "decaying"


def base_table(frame: pd.DataFrame) -> Table:
    """All estimators at the first setting, gradient of the router's parameters."""
    rows = frame[(frame.varies == "base") & (frame.part == "router")]
    first = rows.iloc[0]
    table = Table(
        box=SIMPLE_HEAD,
        title=f"Gradients of the router's parameters, n={first.n} k={first.k} capacity {first.capacity} "
        f"sharpness {first.sharpness:g} imbalance {first.imbalance:g}, {rows.num_samples.max()} draws",
        caption="Bias: of the worst coordinate in standard errors (s.e.); its norm by that of the exact gradient, ± "
        "what chance alone gives. Cosine: mean of single draws. Variance: trace, nats² per datapoint, at equal cost "
        "(doubled for leave-one-out, whose draws take two particles); ratio to independent routing with the same "
        "baseline. ∞: a gradient without noise that misses. —: not known or not defined.\n"
        "Objectives, all log-likelihoods: router Σ E f_i(z_i), z_i from the router; balanced E Σ f_i(z_i), Z from the "
        "procedure; gated Σ E L_i(p f), outputs scaled by the gate; own Σ L_i(y_i) of the deterministic model.",
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
    rows = frame[(frame.part == "router") & (frame.objective == "router") & (frame.baseline != "")]
    shown = rows[rows.baseline == SHOWN_BASELINE]
    unbiased = list(shown[~shown.biased & (shown.estimator != "independent")].estimator.unique())
    table = Table(
        box=SIMPLE_HEAD,
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


def enumeration_table(errors: pd.DataFrame) -> Table:
    """
    What :func:`~inference.expected_gradients.relative_errors` found.

    :param errors: its data frame.
    """
    table = Table(
        box=SIMPLE_HEAD,
        title="Relative error of expected gradients against the gated objective E L(p f), by enumeration:\n"
        "median and quartiles over random problems of 8 experts, by loss and standard deviation of the logits",
    )
    table.add_column("method")
    columns = list(dict.fromkeys(zip(errors.loss, errors.logit_scale)))
    for loss, scale in columns:
        table.add_column(f"{loss}, {scale:g}", justify="right")
    for method, group in errors.groupby("method", sort=False):
        found = group.set_index(["loss", "logit_scale"])
        rows = (found.loc[column] for column in columns)
        table.add_row(str(method), *(f"{row['median']:.2f} ({row.lower:.2f}–{row.upper:.2f})" for row in rows))
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
    """A share with its error where it has one, a dash for NaN."""
    return f"{value:.0%} ± {error:.0%}" if error > 0 else number(value, ".0%")
