"""Draw gradients of every estimator on every setting, and compare them with the exact ones."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from inference.gradients.estimators import GradientEstimator, exact_router_gradient
from inference.gradients.problem import MAX_CHOICES, Problem, Setting, parameters
from inference.registry import Objective
from prob_moe.testing import GradientRow
from prob_moe.testing.report import why_withheld

#: copies of the problem side by side, each of which gives a draw, and the elements that limit them
COPIES = 250
MAX_ELEMENTS = 2**17
#: of central differences, in units of the gradient's norm
ROUNDING = 1e-4

#: what is compared as one vector, by the indices of its parameters
PARTS = {"router": (0, 1), "router bias": (1,), "experts": (2, 3)}


@dataclass(frozen=True)
class Grids:
    """
    The values of every property of a setting. The first is kept while the others vary, one property at a time.

    :raises ValueError: if a list is empty, or a value is out of range.
    """

    n: Sequence[int] = (32, 128)
    k: Sequence[int] = (4, 2, 8)
    capacity_factor: Sequence[float] = (1.0, 1.25, 1.5, 2.0)
    sharpness: Sequence[float] = (1.0, 0.25, 0.5, 2.0, 4.0)
    imbalance: Sequence[float] = (1.0, 0.0, 2.0, 4.0)

    def __post_init__(self) -> None:
        for name, values in asdict(self).items():
            if not values:
                raise ValueError(f"{name} has no value; give at least one")
        self.settings()

    def settings(self) -> list[tuple[str, Setting]]:
        """
        :returns: the property that varies and the setting; ``base`` first, and ``small`` last where no other is small
            enough for the balanced objective to be enumerated.
        """
        base = Setting(**{name: values[0] for name, values in asdict(self).items()})
        found = [("base", base)]
        for name, values in asdict(self).items():
            found += [(name, replace(base, **{name: value})) for value in dict.fromkeys(values) if value != values[0]]
        if all(setting.k**setting.n > MAX_CHOICES for _, setting in found):
            found.append(("small", replace(base, n=6, k=3)))
        return found


def compare(
    settings: Sequence[tuple[str, Setting]],
    estimators: Sequence[GradientEstimator],
    *,
    num_samples: int = 2000,
    seed: int = 0,
    advance: Callable[[str], None] = lambda name: None,
) -> pd.DataFrame:
    """
    A row for every setting, estimator and part of the parameters. Gradients are of objectives summed over datapoints.

    * ``bias_se``: distance of the mean from the exact gradient of ``objective`` in standard errors, of the worst
      coordinate; 0 or infinite for a deterministic gradient, which hits or misses. ``bias_fraction``: norm of that
      distance by the norm of the exact gradient; ``bias_fraction_se``: what an unbiased estimator would show by chance.
      ``mean_cosine`` of single draws and ``cosine_of_mean`` with the exact gradient. All NaN where the exact gradient
      of the objective cannot be had. ``router_...``: the same against the router objective.
    * ``weight_pareto_k``: shape of the tail of the importance weights by their law, minus infinity where they are
      bounded or there are none. ``withheld``: whether there is no verdict on the bias, because by that law the weights
      have no variance: neither standard errors nor ``variance`` mean anything.
    * ``variance``: trace of the covariance of one draw, nats², times particles (so at equal cost) by datapoints.
      ``relative_variance``: by that of independent routing with the same baseline, for the router objective.

    :param settings: what varies, and the setting.
    :param num_samples: gradients to draw of every estimator and setting, at least 100.
    :param advance: called with the estimator's name after each, for a progress bar.
    :raises ValueError: on too few samples.
    """
    if num_samples < 100:
        raise ValueError(f"num_samples must be at least 100 for standard errors to mean something, got {num_samples}")
    rows = []
    for varies, setting in settings:
        problem = Problem.of(setting, seed)
        exact_router = exact_router_gradient(problem)
        for estimator in estimators:
            exact = exact_router if estimator.objective is Objective.ROUTER else estimator.exact(problem)
            # Two draws tell whether they are equal.
            draws = gradient_draws(problem, estimator, 2 if estimator.deterministic else num_samples, seed)
            law = estimator.weight_pareto_k(problem)
            common = {"varies": varies, **asdict(setting), "capacity": setting.capacity}
            common |= {"weight_pareto_k": float("nan") if law is None else law, "withheld": bool(why_withheld(law))}
            rows += [common | row for row in _rows(estimator, setting, draws, exact, exact_router)]
            advance(estimator.name)
    return _with_relative_variance(pd.DataFrame(rows))


def gradient_draws(problem: Problem, estimator: GradientEstimator, num_samples: int, seed: int = 0) -> list[Tensor]:
    """
    :returns: independent gradients of the objective (up to the memory of a baseline) with respect to every one of
        :func:`parameters`, (num_samples or a few more, *shape). The random state is left as it was.
    """
    setting = problem.setting
    copies = max(1, min(COPIES, num_samples, MAX_ELEMENTS // (setting.n * setting.k)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixture = problem.mixture(copies)
        loss = estimator.loss(problem, mixture, copies)
        with torch.no_grad():
            for _ in range(estimator.warm_up):
                loss()
        calls = [
            torch.autograd.grad(-loss(), parameters(mixture), materialize_grads=True)
            for _ in range(-(-num_samples // copies))
        ]
    return [torch.cat(draws) for draws in zip(*calls, strict=True)]


def _rows(
    estimator: GradientEstimator,
    setting: Setting,
    draws: list[Tensor],
    exact: list[Tensor] | None,
    exact_router: list[Tensor],
) -> Iterator[dict[str, Any]]:
    for part, indices in PARTS.items():
        drawn = _flat(draws, indices, 1)
        against_router = _report(part, drawn, _flat(exact_router, indices, 0), estimator.deterministic)
        row: dict[str, Any] = {
            "estimator": estimator.name,
            "baseline": estimator.baseline,
            "objective": str(estimator.objective),
            "biased": estimator.biased,
            "deterministic": estimator.deterministic,
            "part": part,
            "particles": estimator.particles,
            "num_samples": len(drawn),
        }
        if exact is not None:
            target = _flat(exact, indices, 0)
            report = _report(part, drawn, target, estimator.deterministic)
            row |= _numbers(report)
            row["bias_fraction_se"] = (report.variance / len(drawn)) ** 0.5 / float(target.norm().clamp(min=1e-300))
        else:
            row |= dict.fromkeys((*_numbers(against_router), "bias_fraction_se"), float("nan"))
        row |= {f"router_{name}": value for name, value in _numbers(against_router).items()}
        row["variance"] = against_router.variance * estimator.particles / setting.n
        yield row


def _report(part: str, drawn: Tensor, exact: Tensor, deterministic: bool) -> GradientRow:
    report = GradientRow.of(part, drawn, exact)
    if not deterministic:
        return report
    # Without noise there is no standard error: it is the exact gradient, up to central differences, or it is not.
    same = torch.allclose(drawn[0], exact, rtol=0, atol=ROUNDING * float(exact.norm()))
    return replace(report, bias=0.0 if same else float("inf"))


def _flat(tensors: list[Tensor], indices: Sequence[int], start_dim: int) -> Tensor:
    return torch.cat([tensors[index].flatten(start_dim) for index in indices], -1)


def _numbers(row: GradientRow) -> dict[str, float]:
    return {
        "bias_se": row.bias,
        "bias_fraction": row.relative_bias,
        "mean_cosine": row.mean_cosine,
        "cosine_of_mean": row.cosine_of_mean,
    }


def _with_relative_variance(frame: pd.DataFrame) -> pd.DataFrame:
    keys = ["varies", *asdict(Setting()), "baseline", "part"]
    independent = frame[(frame.estimator == "independent") & (frame.objective == Objective.ROUTER)]
    reference = frame[keys].merge(independent[[*keys, "variance"]], on=keys, how="left").variance
    same = frame.objective == Objective.ROUTER
    return frame.assign(relative_variance=(frame.variance / reference.to_numpy()).where(same))
