"""Where the assignment sites of a trace are, and which plate holds their datapoints."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from prob_moe.distributions import AssignmentDistribution

#: a model or a guide: a function whose effects Pyro records
Program = Callable[..., Any]

#: a Pyro message: what a trace records of a site
Site = dict[str, Any]


def no_guide(*args: Any, **kwargs: Any) -> None:
    """What ``None`` means as a guide: it draws nothing."""


def is_assignment(site: Site) -> bool:
    """Whether a site draws an assignment (an observed assignment is an ordinary observation)."""
    return site["type"] == "sample" and not site["is_observed"] and isinstance(site["fn"], AssignmentDistribution)


def assignment_sites(trace: Trace) -> dict[str, Site]:
    """The latent assignment sites of a trace by name, in order of execution."""
    return {name: site for name, site in trace.nodes.items() if is_assignment(site)}


def ordinary_sites(trace: Trace) -> dict[str, Site]:
    """All sample sites of a trace but the latent assignments."""
    return {name: s for name, s in trace.nodes.items() if s["type"] == "sample" and not is_assignment(s)}


def data_plate(trace: Trace, name: str, site: Site) -> CondIndepStackFrame:
    """
    The plate that holds the datapoints of an assignment site: the one vectorised plate of size n in which the site
    itself does not stand. With several such plates, ``infer={"data_plate": name}`` at the site chooses.

    :raises ValueError: if there is no such plate, or several.
    """
    n = site["fn"].event_shape[-1]
    wanted = site["infer"].get("data_plate")
    own = set(site["cond_indep_stack"])
    frames = {f for other in ordinary_sites(trace).values() for f in other["cond_indep_stack"] if f.vectorized} - own
    matching = [f for f in frames if (f.name == wanted if wanted is not None else f.size == n)]
    sizes = {f.name: f.size for f in frames}
    if len(matching) != 1 or matching[0].size != n:
        problem = "no plate" if not matching else "no unambiguous plate"
        asked = "" if wanted is None else f" named {wanted!r}"
        raise ValueError(
            f"assignment site {name!r} routes n = {n} datapoints, but {problem}{asked} of size {n} holds them (plates "
            f"of the model: {sizes}); put the likelihood in pyro.plate(..., {n}, dim=-1) and the assignment site "
            'outside of it, and name it with infer={"data_plate": ...} if several plates have this size'
        )
    return matching[0]


def present_datapoints(site: Site, dim: int) -> Tensor:
    """Which datapoints of an assignment site are no padding, bool, lined up with its data plate."""
    return per_datapoint(present(site), dim)


def present(site: Site) -> Tensor:
    """Which datapoints of an assignment site are no padding, bool (*batch, n)."""
    routing = site["fn"]
    if routing.mask is None:
        return torch.ones(routing.logits.shape[:-1], dtype=torch.bool, device=routing.logits.device)
    mask: Tensor = routing.mask
    return mask


def outside_plate(z: Tensor, event_dim: int = 1) -> Tensor:
    """Drop the dimension that the assignment site leaves to the data plate: (*, 1, n) -> (*, n)."""
    return z.squeeze(-1 - event_dim) if z.dim() > event_dim else z


def per_datapoint(value: Tensor, dim: int) -> Tensor:
    """
    Line up (*batch, n) of an assignment site with the log-probabilities of sites in its data plate.

    The site stands outside the plate, so its batch shape has size 1 (or nothing) at the plate's dimension; there the
    n datapoints go.

    :param value: (*batch, n), one entry per datapoint.
    :param dim: the plate's dimension, negative.

    >>> import torch
    >>> per_datapoint(torch.zeros(5, 1, 7), -1).shape
    torch.Size([5, 7])
    >>> per_datapoint(torch.zeros(7), -2).shape
    torch.Size([7, 1])
    """
    missing = -dim - (value.dim() - 1)
    if missing > 0:
        value = value.reshape((1,) * missing + value.shape)
    if value.shape[dim - 1] != 1:
        raise ValueError(
            f"an assignment site of shape {tuple(value.shape)} must have size 1 in dimension {dim} of its batch shape, "
            "where the data plate stands"
        )
    return value.transpose(dim - 1, -1).squeeze(-1)
