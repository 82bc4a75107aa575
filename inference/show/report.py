"""The report on a run: which sections it has, and why one is left out."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

from inference.runs.run_reader import Run
from inference.show import captions, run_figures, weight_figures
from inference.show.html import Content, Section, Table, Text, page, picture
from inference.show.model_sections import expert_use, graph_pictures, map_pictures
from inference.show.routing_view import RoutingView
from inference.show.run_summary import describe, mean_and_error
from inference.training.run import Fit

#: seeds up to which every one has a column
COLUMNS = 6


def origin_of(run: Run) -> str:
    """:returns: by which a report of the run is known, wherever it lies."""
    return f"prob_moe, run {hashlib.sha256(str(run.folder.path.absolute()).encode()).hexdigest()[:16]}"


def is_report_of(run: Run, file: Path) -> bool:
    """:returns: whether a file is an earlier report of the run, which a newer one may replace."""
    # The folder may have moved with its report.
    origin = "prob_moe, run " if file == run.folder.report else origin_of(run)
    return file.is_file() and f'content="{origin}'.encode() in file.read_bytes()


class LeftOutError(Exception):
    """A section cannot be made; the message says why."""


class Report:
    """
    :param seed: the one whose routing is shown.
    :param fit: of that seed, or None:
    :param view: of that fit, or None:
    :param why_not: why there is none.
    """

    def __init__(
        self, run: Run, seed: int, fit: Fit | None = None, view: RoutingView | None = None, why_not: str = ""
    ) -> None:
        self.run, self.seed, self.fit, self.view, self.why_not = run, seed, fit, view, why_not
        #: by section, why it, or a part of it, is not there
        self.left_out: dict[str, str] = {}

    def html(self) -> str:
        config = self.run.config
        title = f"{config.task}: {config.assignment}" + (f", {config.estimator}" if config.estimator else "")
        return page(title, self.sections(), origin_of(self.run))

    def sections(self) -> list[Section]:
        makers: dict[str, Callable[[], Content]] = {
            "Run": self._description,
            "Test metrics": self._test_metrics,
            "Learning curves": self._learning_curves,
            "Loads and drops": self._loads,
            "Importance weights": self._weights,
            "Router map": lambda: map_pictures(*self._fitted()),
            "Assignment and exchange": lambda: graph_pictures(*self._fitted()),
            "Expert use": lambda: expert_use(self._fit()),
        }
        sections = []
        for title, make in makers.items():
            try:
                content = make()
            except LeftOutError as reason:
                content = self._left_out(title, str(reason))
            sections.append(Section(title, content))
        return sections

    def _description(self) -> Content:
        problems: Content = [Text(problem, missing=True) for problem in self.run.problems]
        options = [(name.replace("_", " "), _said(value)) for name, value in self.run.config.plain().items()]
        return [
            *problems,
            Table((), describe(self.run), words=True),
            Table(("option", "value"), options, folded="All options", words=True),
            Table(("library", "version"), list(self.run.versions.items()), folded="Versions", words=True),
        ]

    def _test_metrics(self) -> Content:
        test = self.run.test
        if test is None:
            damaged = self.run.results.exists()
            raise LeftOutError(
                f"{self.run.results.name} {'is damaged' if damaged else 'comes when all seeds are done'}"
            )
        seeds = list(test.index) if 1 < len(test) <= COLUMNS else []
        rows = []
        for name, (mean, error) in mean_and_error(self.run).items():
            of_seeds = [f"{test[name][seed]:.4g}" for seed in seeds]
            rows.append((name, f"{mean:.4g}" + (f" ± {error:.2g}" if math.isfinite(error) else ""), *of_seeds))
        head = ("metric", "mean ± s.e." if len(test) > 1 else "value", *(f"seed {seed}" for seed in seeds))
        told = f"{len(test)} seeds; ± is one standard error over them" if len(test) > 1 else f"seed {test.index[0]}"
        return [Text(f"On the test set, {told}."), Table(head, rows)]

    def _learning_curves(self) -> Content:
        if self.run.steps.empty:
            raise LeftOutError("there are no metrics")
        figure = run_figures.learning_curves(self.run.steps, self.run.epochs)
        return [picture(figure, captions.LEARNING_CURVES)]

    def _loads(self) -> Content:
        steps = self.run.steps
        if steps.empty:
            raise LeftOutError("there are no metrics")
        if not run_figures.sites_of(steps):
            raise LeftOutError(self.why_not or "nothing was drawn")
        of_seed = steps[steps.seed == self.seed]
        shares: Content = (
            self._left_out("Loads and drops (in part)", f"the loads, since there are no metrics of seed {self.seed}")
            if of_seed.empty
            else [picture(run_figures.loads(of_seed), captions.LOADS.format(seed=self.seed))]
        )
        return [*shares, picture(run_figures.routing_health(steps), captions.ROUTING)]

    def _weights(self) -> Content:
        if self.run.steps.empty:
            raise LeftOutError("there are no metrics")
        if not run_figures.sites_of(self.run.steps):
            raise LeftOutError(self.why_not or "nothing was drawn")
        drawn = None if self.view is None else self.view.weights
        caption = captions.WEIGHTS
        missing: Content = []
        if self.view is None:
            missing = self._left_out("Importance weights (in part)", f"the weights of a draw: {self.why_not}")
        else:
            caption += captions.DRAWN_WEIGHTS.format(seed=self.seed, words=self.view.weights_in_words)
        return [picture(weight_figures.weights(self.run.steps, drawn), caption), *missing]

    def _left_out(self, title: str, why: str) -> Content:
        """Note it, and say so in the place of what is not there."""
        self.left_out[title] = why
        return [Text(f"Left out: {why}.", missing=True)]

    def _fit(self) -> Fit:
        if self.fit is None:
            raise LeftOutError(self.why_not)
        return self.fit

    def _fitted(self) -> tuple[Fit, RoutingView]:
        if self.view is None:
            raise LeftOutError(self.why_not)
        return self._fit(), self.view


def _said(value: object) -> str:
    return "the task's own" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
