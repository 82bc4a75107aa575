"""What a comparison of gradients found, as tables for the terminal."""

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from inference.registry.builtin import label

#: in the table of all settings and in the pictures, where one baseline has to do
SHOWN_BASELINE = "decaying"


#: the word in the place of a bias in standard errors, of weights whose law leaves them none
WITHHELD = "withheld"

#: titles of the tables, in this order
OBJECTIVES = {
    "router": "Router objective Σ E f_i(z_i), z_i from the router",
    "balanced": "Balanced objective E Σ f_i(z_i), Z from the procedure",
    "mixture": "Mixture bound E Σ log Σ_j w_ij p(y_i | j), two experts per datapoint",
    "gated": "Gated objective Σ E L_i(p f), outputs scaled by the gate",
    "own": "Own objective Σ L_i(y_i) of the deterministic model",
}


def base_tables(frame: pd.DataFrame) -> list[Table]:
    """All estimators at the first setting, gradient of the router's parameters: a table for every objective."""
    rows = frame[(frame.varies == "base") & (frame.part == "router")]
    first = rows.iloc[0]
    setting = (
        f"n={first.n} k={first.k} capacity {first.capacity} sharpness {first.sharpness:g} "
        f"imbalance {first.imbalance:g}, {rows.num_samples.max()} draws"
    )
    return [
        _objective_table(rows[rows.objective == objective], f"{title}\n{setting}")
        for objective, title in OBJECTIVES.items()
    ]


#: what the columns of these tables mean
BASE_LEGEND = (
    "Gradients of the router's parameters; objectives are log-likelihoods. Bias: of the worst coordinate, in standard "
    "errors (s.e.); its norm in % of the exact gradient's, ± what chance alone gives; the same to the router "
    "objective. Cosine: mean of single draws. Variance: trace, nats² per datapoint, at equal cost (doubled for "
    "leave-one-out, whose draws take two particles); ratio to independent routing with the same baseline. ∞: a "
    "gradient without noise that misses. —: unknown or undefined. Withheld: by their law, the importance weights have "
    "infinite variance (Pareto shape k of at least 0.5), so that no number of draws tells; nor is the variance one."
)


def _objective_table(rows: pd.DataFrame, title: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=title, collapse_padding=True)
    # The law of the weights, where some have a heavy tail: in 80 columns, too.
    heavy = bool((rows.weight_pareto_k > 0).any())
    table.add_column("estimator, baseline", min_width=17 if heavy else 28)
    for header in ("bias,\ns.e.", "bias,\n%", "router,\n%", "cosine", "variance", "ratio"):
        table.add_column(header, justify="right")
    if heavy:
        table.add_column("k", justify="right")
    for estimator, group in rows.groupby("estimator", sort=False):
        if group.baseline.iloc[0]:
            table.add_row(label(estimator))
        for row in group.itertuples():
            law = [f"{row.weight_pareto_k:.2g}" if row.weight_pareto_k > 0 else ""] if heavy else []
            table.add_row(f"  {row.baseline}" if row.baseline else label(estimator), *_numbers(row), *law)
    return table


def _numbers(row: Any) -> list[str]:
    chance = f" ± {100 * row.bias_fraction_se:.0f}" if row.bias_fraction_se > 0 else ""
    return [
        WITHHELD if row.withheld else number(row.bias_se, ".1f"),
        number(100 * row.bias_fraction, ".0f") + chance,
        number(100 * row.router_bias_fraction, ".0f"),
        number(row.mean_cosine, ".2f"),
        number(row.variance, ".3g"),
        number(row.relative_variance, ".2f"),
    ]


def settings_table(frame: pd.DataFrame) -> Table:
    """Every setting: ratios of variance, and how far the unbiased estimators and the biased ones are off."""
    rows = frame[(frame.part == "router") & (frame.objective == "router") & (frame.baseline != "")]
    shown = rows[rows.baseline == SHOWN_BASELINE]
    unbiased = list(shown[~shown.biased & (shown.estimator != "independent")].estimator.unique())
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        title=f"All settings, router objective: variance by that of independent routing, baseline {SHOWN_BASELINE}",
        caption="Last columns: bias of the router's worst coordinate, in standard errors, over all baselines: largest "
        "of the unbiased estimators, range of the biased twins. Withheld: of these the weights have infinite variance.",
    )
    table.add_column("setting")
    for header in (*map(_narrow, unbiased), "unbiased,\ns.e.", "twins,\ns.e."):
        table.add_column(header, justify="right")
    if rows.withheld.any():
        table.add_column(WITHHELD)
    for (varies, setting), group in by_setting(rows):
        ratios = group[group.baseline == SHOWN_BASELINE].set_index("estimator").relative_variance
        honest, twins = group[~group.biased & ~group.withheld].bias_se, group[group.biased].bias_se
        table.add_row(
            varies if varies in ("base", "small") else f"{varies} {setting[varies]:g}",
            *(number(ratios[name], ".2f") for name in unbiased),
            f"≤ {number(honest.max(), '.1f')}",
            f"{number(twins.min(), '.1f')} – {number(twins.max(), '.1f')}",
            *([",\n".join(map(_narrow, group[group.withheld].estimator.unique()))] if rows.withheld.any() else []),
        )
    return table


def _narrow(name: str) -> str:
    """A label with a line for each of its words, hyphens included."""
    return label(name).replace("-", "-\n").replace(" ", "\n")


def enumeration_table(errors: pd.DataFrame) -> Table:
    """
    What :func:`~inference.gradients.expected_gradients.relative_errors` found.

    :param errors: its data frame.
    """
    table = Table(
        box=SIMPLE_HEAD,
        collapse_padding=True,
        title="Relative error of expected gradients against the gated objective E L(p f), by enumeration:\n"
        "median and quartiles over random problems of 8 experts, by loss and standard deviation of the logits",
    )
    table.add_column("method")
    columns = list(dict.fromkeys(zip(errors.loss, errors.logit_scale)))
    for loss, scale in columns:
        table.add_column(f"{loss}\n{scale:g}", justify="right")
    for method, group in errors.groupby("method", sort=False):
        found = group.set_index(["loss", "logit_scale"])
        rows = (found.loc[column] for column in columns)
        table.add_row(label(method), *(f"{row['median']:.2f}\n{row.lower:.2f}–{row.upper:.2f}" for row in rows))
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
