"""The report on a fitted table."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from inference.show import table_figures
from inference.show.html import Content, Section, Table, Text, page, picture
from inference.tables.table_run import TableRun

#: columns that have a picture
MOST_COLUMNS = 4
#: rows for every expert
EXAMPLES = 5
#: An expert is dead whose share is a smaller part of an equal one.
DEAD = 0.01
#: of coverages
LEVELS = np.linspace(0.05, 0.95, 19)

ORIGIN = "prob_moe, fit of a table"


class TableReport:
    """The page of one run."""

    def __init__(self, run: TableRun) -> None:
        self.run, self.estimator, self.table = run, run.estimator, run.rows
        self.left_out: dict[str, str] = {}
        if len(run.rows):
            self.x, _ = run.encoding.encode(run.rows)
            self.y, self.arguments = run.target_of(run.rows), run.arguments(run.rows)
            self.router = self.estimator.responsibilities(self.x)
            self.known = self._known()

    @property
    def part(self) -> str:
        """Which rows the pictures show."""
        held = int(self.run.held_out.sum())
        return f"{len(self.table)} rows, {held} of them held out"

    def html(self) -> str:
        return page(f"{self.run.target}, from {self.run.file}", self.sections(), ORIGIN)

    def sections(self) -> list[Section]:
        makers: dict[str, Callable[[], Content]] = {
            "Fit": self._description,
            "How well it fits": self._metrics,
            "Search": self._search,
            "Experts": self._experts,
            "Calibration": self._calibration,
            "Regions of the experts": self._regions,
            "Example rows": self._examples,
        }
        sections = []
        for title, make in makers.items():
            needs_rows = make not in (self._description, self._metrics, self._search)
            if needs_rows and not len(self.table):
                self.left_out[title] = "rows.csv is missing or damaged"
                sections.append(Section(title, [Text(f"Left out: {self.left_out[title]}.", missing=True)]))
            else:
                sections.append(Section(title, make()))
        return sections

    def _description(self) -> Content:
        run, estimator = self.run, self.estimator
        rows = [
            ("target", run.target),
            ("law of the target", run.family),
            ("experts", f"{estimator.num_experts}, {estimator.experts}"),
            ("router", estimator.router),
            ("columns", ", ".join(column.name for column in run.encoding.columns)),
            ("log-likelihood in training", f"{estimator.log_likelihood_:.6g} nats"),
            ("parameters", str(estimator.num_parameters_)),
        ]
        options = [(name.replace("_", " "), _said(value)) for name, value in run.options.items() if name != "estimator"]
        options += [(name.replace("_", " "), _said(value)) for name, value in run.options["estimator"].items()]
        return [
            *(Text(f"Note: {note}.", missing=True) for note in run.notes),
            Table((), rows, words=True),
            Table(("option", "value"), options, folded="All options", words=True),
            Table(("library", "version"), list(run.versions.items()), folded="Versions", words=True),
        ]

    def _metrics(self) -> Content:
        parts = self.run.metrics
        names = list(dict.fromkeys(name for metrics in parts.values() for name in metrics))
        rows = [
            (name, *(f"{metrics[name]:.5g}" if name in metrics else "" for metrics in parts.values())) for name in names
        ]
        return [Table(("", *parts), rows)]

    def _search(self) -> Content:
        if hasattr(self.estimator, "loss_curve_"):
            caption = "The objective in training and the log-likelihood of rows set aside within the training part."
        else:
            caption = (
                "Every point is where one start ended; the line is the fit, the best one whose scales are off their "
                "floor, on which an expert describes a few rows exactly. Where many points lie on the line, the "
                "maximum is found again and again."
            )
        return [picture(table_figures.search(self.estimator), caption)]

    def _experts(self) -> Content:
        k = self.router.shape[1]
        dead = [str(j) for j in range(k) if self.router[:, j].mean() < DEAD / k]
        content: Content = []
        if dead:
            content.append(Text(f"Dead: expert {', '.join(dead)} has next to no share of the rows.", missing=True))
        caption = f"Shares of the experts among {self.part}: by the router, and when y is known. Dashed: equal shares."
        content.append(picture(table_figures.shares(self.router.mean(0), self.known.mean(0)), caption))
        if hasattr(self.estimator, "covariance_") and not self.run.is_classifier:
            content += [Text("Coefficients, with standard errors in brackets."), self._coefficients()]
        elif hasattr(self.estimator, "covariance_"):
            lines = [(line,) for line in str(self.estimator.summary()).splitlines() if line.strip()]
            content.append(Table((), lines, folded="All coefficients", words=True))
        return content

    def _coefficients(self) -> Table:
        estimator, errors = self.estimator, self.estimator.standard_errors()
        names, k = estimator._names(estimator.mixture_.expert_places), estimator.num_experts
        rows = []
        blocks = [("intercept", estimator.intercept_[:, None], errors["intercept"][:, None], ["intercept"])]
        blocks += [("coef", estimator.coef_, errors["coef"], names)]
        blocks += [
            (n, getattr(estimator, n + "_")[:, None], errors[n][:, None], [n]) for n in ("scale",) if n in errors
        ]
        for _, values, spread, labels in blocks:
            for place, label in enumerate(labels):
                rows.append((label, *(f"{values[j, place]:.4g} ({spread[j, place]:.2g})" for j in range(k))))
        return Table(("", *(f"expert {j}" for j in range(k))), rows)

    def _calibration(self) -> Content:
        held = self.run.held_out if self.run.held_out.any() else ~self.run.held_out
        estimator, x, y = self.estimator, self.x[held], self.y[held]
        arguments = {name: value[held] for name, value in self.arguments.items()}
        last = f" Of {held.sum()} {'held-out' if self.run.held_out.any() else 'training'} rows."
        if self.run.is_classifier:
            probabilities = estimator.predict_proba(x)
            right = estimator.classes_[probabilities.argmax(1)] == y
            figure = table_figures.reliability(probabilities.max(1), right)
            words = "Points on the line: the class comes as often as its probability says. Bars: 95 % intervals."
            return [picture(figure, words + last)]
        ranks = estimator.cdf(x, y, **arguments)
        if estimator.mixture_.family.discrete:
            below = estimator.cdf(x, y - 1, **arguments)
            ranks = below + np.random.default_rng(0).uniform(size=len(ranks)) * (ranks - below)
        words = (
            "Left: if the law is right, what comes is as likely to be in one tenth of its law as in another; the band "
            "is two standard deviations wide on either side. Right: intervals hold what they promise on the line."
        )
        return [picture(table_figures.calibration(LEVELS, ranks), words + last)]

    def _regions(self) -> Content:
        columns = self.run.encoding.columns
        numeric = all(column.mean is not None for column in columns) and len(self.x.columns) == len(columns)
        if numeric and len(columns) == 1 and not self.run.extra:
            figure = table_figures.one_feature(self.run, self.x, self.y, self.known)
            words = "Rows in the colour of the expert that is responsible for them; lines are the means of the experts."
            return [picture(figure, f"{words} Of {self.part}.")]
        if numeric and len(columns) == 2:
            figure = table_figures.two_features(self.run, self.x, self.known)
            words = "The plane in the colours of the experts that the router wants there; rows in those of the experts"
            return [picture(figure, f"{words} that are responsible for them when y is known. Of {self.part}.")]
        effects = self._effects()
        if not effects:
            return [Text("The router is the same for all rows: no expert has a region.")]
        figure = table_figures.against_features(self.table, dict(list(effects.items())[:MOST_COLUMNS]), self.router)
        words = (
            "Mean probabilities of the experts against the columns that they follow most. The effect of a column, from "
            "0 to 1, is how much probability moves from one expert to another, on average, when its cells are shuffled."
        )
        table = Table(
            ("column", "effect"), [(name, f"{effect:.3f}") for name, effect in effects.items()], folded="Effects"
        )
        return [picture(figure, f"{words} Of {self.part}."), table]

    def _effects(self) -> dict[str, float]:
        """How much of the router's probability moves when a column is shuffled, the largest first."""
        generator, effects = np.random.default_rng(0), {}
        for column in self.run.encoding.columns:
            shuffled = self.x.copy()
            order = generator.permutation(len(self.x))
            shuffled[column.features] = self.x[column.features].to_numpy()[order]
            moved = self.estimator.responsibilities(shuffled) - self.router
            effects[column.name] = float(np.abs(moved).sum(1).mean() / 2)
        return {name: value for name, value in sorted(effects.items(), key=lambda item: -item[1]) if value > 1e-6}

    def _examples(self) -> Content:
        content: Content = [
            Text(f"For every expert the rows that it is most responsible for when y is known, of {self.part}.")
        ]
        names = [self.run.target, *(column.name for column in self.run.encoding.columns)]
        for j in range(self.known.shape[1]):
            best = np.argsort(-self.known[:, j], kind="stable")[:EXAMPLES]
            rows = [
                (f"{self.known[row, j]:.3f}", *(_cell(self.table[name].iloc[row]) for name in names)) for row in best
            ]
            content += [Text(f"Expert {j}"), Table(("responsibility", *names), rows)]
        return content

    def _known(self) -> np.ndarray:
        """Responsibilities when y is known; where it is a class that was not there in training, the router's."""
        if not self.run.is_classifier:
            return np.asarray(self.estimator.responsibilities(self.x, self.y, **self.arguments))
        known, seen = self.router.copy(), np.isin(self.y, self.estimator.classes_)
        if seen.any():
            known[seen] = self.estimator.responsibilities(self.x[seen], self.y[seen])
        return known


def _said(value: Any) -> str:
    if value is None:
        return "the default"
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | dict) else str(value)


def _cell(value: Any) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.5g}" if isinstance(value, float | np.floating) else str(value)
