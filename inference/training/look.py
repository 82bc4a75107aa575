"""A look at the routing of a training step."""

import math

import torch
from torch import Tensor

from prob_moe.diagnostics import (
    RoutingRecorder,
    effective_experts,
    effective_sample_size,
    responsibility_entropy,
)

#: a line of a table, by column
Row = dict[str, float]


def site_loads(look: Row) -> dict[str, list[float]]:
    """:returns: the loads of the experts by assignment site, from a row of :func:`look_at`."""
    loads: dict[str, list[float]] = {}
    for name, load in look.items():
        if name.startswith("load/"):
            loads.setdefault(name.removeprefix("load/").rpartition("/")[0], []).append(load)
    return loads


def weights_over_layers(recorder: RoutingRecorder) -> Tensor:
    """
    The importance weights of the recorded draws, multiplied over the layers.

    :returns: (*, n), or (*, m * n) where the last layer selects m experts for every datapoint.
    """
    product: Tensor | None = None
    for routing, z in recorder.draws.values():
        weights = routing.importance_weights(z)
        if routing.num_selected is not None:
            weights = (weights if product is None else product.unsqueeze(-2) * weights).flatten(-2)
        elif product is not None:
            weights = product * weights
        product = weights
    assert product is not None
    return product


@torch.no_grad()
def look_at(recorder: RoutingRecorder) -> Row:
    """
    The routing of a training step, in the columns of :mod:`inference.runs.run_folder`; means over particles.

    :returns: of all layers together, then of each; NaN where nothing was drawn, as by a rule.
    """
    if not recorder.draws:
        return dict.fromkeys(("weight_ess", "max_mean_load", "drop_rate"), math.nan)
    layers = recorder.diagnostics()
    weights = weights_over_layers(recorder)
    row = {
        "weight_ess": float(effective_sample_size(weights).mean()),
        "max_mean_load": max(float(layer.max_mean_load.mean()) for layer in layers.values()),
        "drop_rate": 1 - math.prod(1 - float(layer.drop_rate.mean()) for layer in layers.values()),
    }
    for site, (routing, z) in recorder.draws.items():
        row |= {f"{name}/{site}": float(value.double().mean()) for name, value in layers[site]._asdict().items()}
        loads = routing.loads(z)
        mean_loads = loads.reshape(-1, loads.shape[-1]).double().mean(0).tolist()
        row |= {f"load/{site}/{expert}": load for expert, load in enumerate(mean_loads)}
    for site, log_joint in recorder.log_joint.items():
        row[f"responsibility_entropy/{site}"] = float(responsibility_entropy(log_joint).double().mean())
        row[f"effective_experts/{site}"] = float(effective_experts(log_joint).double().mean())
    return row
