"""What a comparison of gradients found, as numbers, a table, and a data frame."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from torch import Tensor

from prob_moe.testing.statistics import deviation

#: a Pareto shape from which on the variance is infinite by the law; and one above which an estimated one is too large
INFINITE_VARIANCE = 0.5
UNTRUSTED = 0.7


def why_withheld(law: float | None, estimate: float | None = None) -> str:
    """
    Why the tail of importance weights leaves no verdict on a bias, or nothing. The law decides where it is known.

    :param law: the Pareto shape by the law, :attr:`~prob_moe.distributions.AssignmentDistribution.weight_pareto_k`.
    :param estimate: fitted to draws, :func:`~prob_moe.diagnostics.pareto_k`.

    >>> why_withheld(0.5)
    'the weights have Pareto k = 0.5 by their law: infinite variance'
    >>> why_withheld(0.33, 0.9)
    ''
    """
    if law is not None:
        told = f"the weights have Pareto k = {law:.2g} by their law: infinite variance"
        return told if law >= INFINITE_VARIANCE else ""
    if estimate is not None and (math.isnan(estimate) or estimate > UNTRUSTED):
        return f"the weights have an estimated Pareto k of {estimate:.2g}, above {UNTRUSTED}"
    return ""


@dataclass(frozen=True)
class GradientRow:
    """
    One parameter, or all of them together.

    :param parameter: its name.
    :param size: number of coordinates.
    :param bias: distance of the mean from the exact gradient in standard errors, of the worst coordinate.
    :param relative_bias: norm of that distance by the norm of the exact gradient; NaN if that is 0.
    :param variance: trace of the covariance of one draw.
    :param cosine_of_mean: cosine of the angle between the mean and the exact gradient.
    :param mean_cosine: mean of the cosines of single draws; a draw of norm 0 counts 0.
    """

    parameter: str
    size: int
    bias: float
    relative_bias: float
    variance: float
    cosine_of_mean: float
    mean_cosine: float

    @classmethod
    def of(cls, parameter: str, draws: Tensor, exact: Tensor) -> "GradientRow":
        """
        :param draws: gradients, (num_draws, *shape).
        :param exact: the exact gradient, (*shape).
        """
        draws, exact = draws.reshape(len(draws), -1), exact.flatten()
        mean, norm = draws.mean(0), exact.norm()
        return cls(
            parameter=parameter,
            size=exact.numel(),
            bias=deviation(draws, exact).worst()[0],
            relative_bias=float((mean - exact).norm() / norm) if norm > 0 else float("nan"),
            variance=float(draws.var(0).sum()),
            cosine_of_mean=float(_cosines(mean, exact)),
            mean_cosine=float(_cosines(draws, exact).mean()),
        )


def _cosines(gradients: Tensor, exact: Tensor) -> Tensor:
    lengths = gradients.norm(dim=-1)
    # 0 / 0 is a draw without direction if the exact gradient has one, and undefined if it has none.
    return (gradients @ exact) / lengths.masked_fill(lengths == 0, 1.0) / exact.norm()


@dataclass(frozen=True)
class GradientReport:
    """
    An estimator against the exact gradient of the objective that it claims.

    :param rows: by parameter.
    :param total: all parameters as one vector.
    :param num_samples: gradients drawn.
    :param max_standard_errors: the largest bias that passes.
    :param weight_pareto_k: of the importance weights that the estimator multiplies by, by their law; None where it is
        unknown, minus infinity where they are bounded or there are none.
    :param estimated_pareto_k: the same, fitted to weights that were drawn; None where there are too few.
    """

    rows: tuple[GradientRow, ...]
    total: GradientRow
    num_samples: int
    max_standard_errors: float
    weight_pareto_k: float | None = -math.inf
    estimated_pareto_k: float | None = None

    @property
    def worst(self) -> float:
        """The bias of the worst coordinate of all parameters, in standard errors."""
        return self.total.bias

    @property
    def withheld(self) -> str:
        """Why there is no verdict, or nothing: without a variance, standard errors mean nothing."""
        return why_withheld(self.weight_pareto_k, self.estimated_pareto_k)

    @property
    def unbiased(self) -> bool | None:
        """None where the verdict is withheld."""
        return None if self.withheld else self.worst < self.max_standard_errors

    @property
    def verdict(self) -> str:
        if self.withheld:
            return f"withheld: {self.withheld}"
        bound = f"{self.max_standard_errors:g} standard errors"
        return f"unbiased within {bound}" if self.unbiased else f"biased: {self.worst:.1f} of at most {bound}"

    @property
    def frame(self) -> Any:
        """
        A pandas data frame, one row per parameter and one for all; the columns are the fields of :class:`GradientRow`.

        :raises ImportError: without pandas, which the library itself does not need.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("GradientReport.frame needs pandas: pip install 'prob_moe[programs]'") from error
        return pandas.DataFrame([asdict(row) for row in (*self.rows, self.total)]).set_index("parameter")

    def table(self) -> Table:
        """:returns: a table for ``rich.print``; bias in standard errors of the worst coordinate."""
        title = f"Gradients of {self.num_samples} draws: {self.verdict}"
        headers = ("parameter", "size", "bias", "relative bias", "variance", "cosine of mean", "mean cosine")
        table = Table(*headers, title=title)
        for row in (*self.rows, self.total):
            numbers = (row.bias, row.relative_bias, row.variance, row.cosine_of_mean, row.mean_cosine)
            formats = ("{:.1f}", "{:.1%}", "{:.4g}", "{:.4f}", "{:.4f}")
            cells = [form.format(number) for form, number in zip(formats, numbers, strict=True)]
            table.add_row(row.parameter, str(row.size), *cells)
        return table

    def __str__(self) -> str:
        rows = [f"{row.parameter}: {row.bias:.1f} standard errors" for row in self.rows]
        return "\n".join([f"{self.verdict} ({self.num_samples} draws)", *rows])
