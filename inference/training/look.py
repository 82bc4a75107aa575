"""A look at the routing of a training step."""

from math import prod

import torch

from prob_moe.diagnostics import RoutingRecorder, effective_sample_size

#: a line of a table, by column
Row = dict[str, float]


def site_loads(look: Row) -> dict[str, list[float]]:
    """:returns: the loads of the experts by assignment site, from a row of :func:`look_at`."""
    loads: dict[str, list[float]] = {}
    for name, load in look.items():
        if name.startswith("load/"):
            loads.setdefault(name.removeprefix("load/").rpartition("/")[0], []).append(load)
    return loads


@torch.no_grad()
def look_at(recorder: RoutingRecorder) -> Row:
    """
    The routing of a training step, in the columns of :mod:`inference.runs.run_folder`; means over particles.

    :returns: of all layers together, then of each.
    """
    layers = recorder.diagnostics()
    weights = torch.stack([routing.importance_weights(z) for routing, z in recorder.draws.values()]).prod(0)
    row = {
        "weight_ess": float(effective_sample_size(weights).mean()),
        "max_mean_load": max(float(layer.max_mean_load.mean()) for layer in layers.values()),
        "drop_rate": 1 - prod(1 - float(layer.drop_rate.mean()) for layer in layers.values()),
    }
    for site, (routing, z) in recorder.draws.items():
        row |= {f"{name}/{site}": float(value.double().mean()) for name, value in layers[site]._asdict().items()}
        loads = routing.loads(z)
        mean_loads = loads.reshape(-1, loads.shape[-1]).double().mean(0).tolist()
        row |= {f"load/{site}/{expert}": load for expert, load in enumerate(mean_loads)}
    return row
