"""A trained model as it would be served: by one, two or all of its experts."""

from typing import Any

import torch
from pyro.distributions import Categorical, TorchDistribution
from torch import Tensor

from inference.study.learners import Learner
from inference.study.problems import Problem

#: ways to serve, by name: so many experts, the most probable ones, None for all; and where it is none of these, the
#: model's own
AS_TRAINED = "as trained"
EXPERTS: dict[str, int | None] = {"1": 1, "2": 2, "all": None}
WAYS = (*EXPERTS, AS_TRAINED)
#: rows that are named, the worst ones first
NUM_NAMED = 3


@torch.no_grad()
def measure_serving(learner: Learner, problem: Problem) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    """
    :returns: measures by way to serve, ``"nll, 2"`` for one, (models); and, where a robust score is asked for, the
        worst of the rows beyond its limit, by way to serve, for each model a list of (number of the row, nats).

        ============ ==========================================================================
        nll          nats per held-out datapoint
        error        the problem's
        robust       nll with no datapoint costing more than the problem's limit
        beyond       how many datapoints do
        ============ ==========================================================================
    """
    x, y = problem.held_out
    own = -learner.log_predictive(x, y)
    served = [(AS_TRAINED, own, learner.serve(x))]
    for way, num_selected in EXPERTS.items():
        if num_selected is not None and num_selected > learner.mixture.experts.num_experts:
            continue
        law = learner.served_by(x, num_selected)
        if law is None:
            continue
        costs = -law.log_prob(y)
        if torch.allclose(costs, own, rtol=1e-4, atol=1e-4):
            del served[0]  # told by this way
            own = torch.full_like(own, torch.nan)
        served.append((way, costs, _point(law)))
    measures: dict[str, Tensor] = {}
    rows: dict[str, list[Any]] = {}
    for way, costs, out in served:
        measures |= _measures(way, costs, out, problem)
        rows |= _worst(way, costs, problem)
    return measures, rows


def _measures(way: str, costs: Tensor, out: Tensor, problem: Problem) -> dict[str, Tensor]:
    found = {f"nll, {way}": costs.mean(-1), f"error, {way}": problem.error(out, problem.held_out[1])}
    if problem.robust is not None:
        found[f"robust, {way}"] = costs.clamp(max=problem.robust).mean(-1)
        found[f"beyond, {way}"] = (costs > problem.robust).sum(-1).to(costs.dtype)
    return {name: values.reshape(-1) for name, values in found.items()}


def _worst(way: str, costs: Tensor, problem: Problem) -> dict[str, list[Any]]:
    if problem.robust is None or problem.rows is None:
        return {}
    named = []
    for cost, row in zip(costs.flatten(0, -2), problem.rows.flatten(0, -2)):
        worst = cost.topk(NUM_NAMED)
        named.append(
            [
                [int(row[place]), round(float(nats), 1)]
                for nats, place in zip(worst.values, worst.indices)
                if nats > problem.robust
            ]
        )
    return {way: named}


def _point(law: TorchDistribution) -> Tensor:
    """What a law is judged by as an output: logits of classes, or its mean."""
    return law.logits if isinstance(law, Categorical) else law.mean.unsqueeze(-1)
