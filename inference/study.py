"""The study: one toy task, many seeds side by side, every way to train the router."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import pandas as pd
import pyro
import torch
from torch import Tensor

from inference.fit import steps
from models.piecewise import PiecewiseData, piecewise_data, piecewise_mixture, piecewise_nll
from prob_moe.distributions import (
    AssignmentDistribution,
    CapacitySkip,
    DependentRounding,
    GumbelMatching,
    IndependentRouting,
)
from prob_moe.estimators import TraceRouting_ELBO
from prob_moe.mixture import MixtureOfExperts

Loss = Callable[[], Tensor]


@dataclass(frozen=True)
class Arm:
    """
    One way to train.

    :param name: how tables and pictures call it.
    :param assignment: the procedure that assigns, or None for the exact gradient.
    :param weighted: whether importance weights correct for the procedure; without, the gradient is biased.
    """

    name: str
    assignment: type[AssignmentDistribution] | None
    weighted: bool = True


ARMS = (
    Arm("exact gradient", None),
    Arm("independent", IndependentRouting),
    Arm("skip", CapacitySkip),
    Arm("Gumbel-Matching", GumbelMatching),
    Arm("dependent rounding", DependentRounding),
    Arm("skip, unweighted", CapacitySkip, weighted=False),
    Arm("Gumbel-Matching, unweighted", GumbelMatching, weighted=False),
)


#: pairs of arms whose difference the claims are about
CLAIMS = (
    ("skip", "Gumbel-Matching"),
    ("skip", "skip, unweighted"),
    ("Gumbel-Matching", "Gumbel-Matching, unweighted"),
    ("dependent rounding", "skip"),
)


@dataclass(frozen=True)
class Settings:
    """What all arms share."""

    num_seeds: int = 50
    num_steps: int = 3000
    learning_rate: float = 0.1
    num_datapoints: int = 100
    capacity_factor: float = 1.0
    break_at: float = 0.5
    load_balancing: float = 0.0
    seed: int = 0
    eval_every: int = 50
    #: a seed is solved if its mixture is within this many nats per datapoint of the true process
    solved_within: float = 0.5

    def __post_init__(self) -> None:
        for name in ("num_seeds", "num_steps", "num_datapoints", "eval_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a positive int, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class ArmResult:
    """
    :param curve: a row an evaluation and seed: arm, step, seed, nll and objective (nats per datapoint).
    :param mixture: the trained mixtures, stacked over seeds.
    :param solved: which seeds solved the task, (num_seeds,).
    """

    arm: Arm
    curve: pd.DataFrame
    mixture: MixtureOfExperts
    solved: Tensor


def run_study(
    settings: Settings, advance: Callable[[str], None] = lambda name: None
) -> tuple[PiecewiseData, list["ArmResult"]]:
    """
    Train every arm from the same initial parameters on the same data.

    :param advance: called with the arm's name after every step, for a progress bar.
    :returns: the data, and an :class:`ArmResult` an arm.
    """
    pyro.set_rng_seed(settings.seed)
    data = piecewise_data((settings.num_seeds,), settings.num_datapoints, settings.break_at)
    start = piecewise_mixture(
        IndependentRouting,
        (settings.num_seeds,),
        capacity_factor=settings.capacity_factor,
        load_balancing=settings.load_balancing,
    )
    results = []
    for arm in ARMS:
        pyro.set_rng_seed(settings.seed)
        results.append(_run_arm(arm, deepcopy(start), data, settings, partial(advance, arm.name)))
    return data, results


def arm_loss(arm: Arm, mixture: MixtureOfExperts, data: PiecewiseData) -> Loss:
    """:returns: minus the router objective, averaged over datapoints and summed over seeds, as the arm estimates it."""
    scale = 1 / data.y.shape[-1]
    if arm.assignment is None:
        return lambda: -scale * mixture.router_objective(data.x, data.y).sum()
    mixture.assignment = arm.assignment
    elbo = TraceRouting_ELBO(weighted=arm.weighted)

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("seeds", y.shape[0], dim=-2), pyro.poutine.scale(scale=scale):
            mixture(x, y)

    return lambda: elbo.differentiable_loss(model, _no_guide, *data)


def _no_guide(x: Tensor, y: Tensor) -> None:
    """All latent sites are assignments, which the model draws."""


def _run_arm(
    arm: Arm, mixture: MixtureOfExperts, data: PiecewiseData, settings: Settings, advance: Callable[[], None]
) -> ArmResult:
    loss = arm_loss(arm, mixture, data)
    rows = [_evaluate(arm, mixture, data, 0)]
    for step, _ in steps(mixture, loss, num_steps=settings.num_steps, learning_rate=settings.learning_rate):
        advance()
        if (step + 1) % settings.eval_every == 0 or step + 1 == settings.num_steps:
            rows.append(_evaluate(arm, mixture, data, step + 1))
    with torch.no_grad():
        nll = -mixture.marginal_log_likelihood(data.x, data.y).mean(-1)
    solved = nll <= piecewise_nll(data, settings.break_at) + settings.solved_within
    return ArmResult(arm, pd.concat(rows, ignore_index=True), mixture, solved)


@torch.no_grad()
def _evaluate(arm: Arm, mixture: MixtureOfExperts, data: PiecewiseData, step: int) -> pd.DataFrame:
    nll = -mixture.marginal_log_likelihood(data.x, data.y).mean(-1)
    objective = mixture.router_objective(data.x, data.y) / data.y.shape[-1]
    return pd.DataFrame(
        {"arm": arm.name, "step": step, "seed": range(len(nll)), "nll": nll.numpy(), "objective": objective.numpy()}
    )


def summary(results: list[ArmResult]) -> pd.DataFrame:
    """A row an arm: fraction of seeds solved with its standard error, final NLL with its standard error."""
    rows = []
    for result in results:
        final = result.curve[result.curve.step == result.curve.step.max()]
        share, count = float(result.solved.double().mean()), len(result.solved)
        rows.append(
            {
                "arm": result.arm.name,
                "seeds": count,
                "solved": share,
                "solved_se": (share * (1 - share) / count) ** 0.5,
                "nll": final.nll.mean(),
                "nll_se": final.nll.sem(),
                "nll_median": final.nll.median(),
                "objective": final.objective.mean(),
            }
        )
    return pd.DataFrame(rows)


def contrasts(curves: pd.DataFrame) -> pd.DataFrame:
    """
    Differences of the final NLL between arms, paired over seeds: a row a pair of ``CLAIMS``, in nats per datapoint.

    :param curves: the curves of all arms, one below the other.
    """
    final = curves[curves.step == curves.step.max()].pivot(index="seed", columns="arm", values="nll")
    rows = []
    for first, second in CLAIMS:
        difference = final[first] - final[second]
        rows.append({"arm": first, "minus": second, "nll": difference.mean(), "nll_se": difference.sem()})
    return pd.DataFrame(rows)
