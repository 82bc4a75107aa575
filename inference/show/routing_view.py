"""What a fitted model does with a part of its test set: one draw of the routing, and what it serves."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference.training.look import weights_over_layers
from inference.training.run import Fit
from models.assignments import assignments_of
from prob_moe.diagnostics import LEAST_WEIGHTS, RoutingRecorder, effective_sample_size, pareto_k
from prob_moe.distributions import AssignmentDistribution

#: datapoints that a picture shows
SHOWN = 600


@dataclass(frozen=True)
class RoutingView:
    """
    :param x: rows of the test set; one may hold several datapoints, as a text does.
    :param groups: the group of every datapoint, by name, n of them.
    :param draws: by assignment site, in the order of the layers: procedure and draw.
    :param weights: importance weights of the draw, multiplied over the layers, (n,), or m times as many.
    :param served: the expert that serves, negative where dropped, (n,) for every layer; of several the favourite.
    """

    x: Tensor
    y: Tensor
    groups: list[str]
    draws: dict[str, tuple[AssignmentDistribution, Tensor]]
    weights: np.ndarray
    served: list[np.ndarray]

    @property
    def ess(self) -> float:
        """Effective sample size of the weights, a share of n."""
        return float(effective_sample_size(torch.as_tensor(self.weights)))

    @property
    def pareto_k(self) -> float:
        """See :func:`~prob_moe.diagnostics.pareto_k`; NaN of too few datapoints."""
        return float(pareto_k(torch.as_tensor(self.weights))) if len(self.weights) >= LEAST_WEIGHTS else math.nan

    @property
    def pareto_k_law(self) -> float | None:
        """The heaviest tail of the layers' weights, by the law of their procedures; None where one has no law."""
        laws = [routing.weight_pareto_k for routing, _ in self.draws.values()]
        return None if None in laws else max(law for law in laws if law is not None)

    @property
    def weights_in_words(self) -> str:
        """The numbers above, for a caption."""
        shape = self.pareto_k
        tail = f"Pareto k {shape:.2f}" if math.isfinite(shape) else "no tail that a Pareto k could be fitted to"
        law = self.pareto_k_law
        by_law = f" (by the law {law:.2g}{': infinite variance' if law >= 0.5 else ''})" if law and law > 0 else ""
        return f"effective sample size {self.ess:.2f}, {self.zeros:.1%} zeros, {tail}{by_law}"

    @property
    def zeros(self) -> float:
        """Share of the datapoints with weight 0: dropped."""
        return float((self.weights == 0).mean())


def favourite(z: Tensor, routing: AssignmentDistribution) -> Tensor:
    """
    :param z: of the datapoints of a procedure, one expert or several for each.
    :returns: of several the one that the router likes best, where it processes the datapoint; one for each.
    """
    if routing.num_selected is None or z.numel() == routing.logits.shape[:-1].numel():
        return z
    z = z.reshape(*routing.batch_shape, *routing.event_shape)
    log_p = routing.router_log_prob(z).masked_fill(z < 0, -torch.inf)
    return z.gather(-2, log_p.argmax(-2, keepdim=True)).squeeze(-2)


@torch.no_grad()
def routing_view(fit: Fit) -> RoutingView | None:
    """
    :returns: None if the model draws no assignment.
    """
    x, y = fit.task.test
    rows = max(1, SHOWN // fit.task.groups(x[:1], y[:1]).numel())
    x, y = x[:rows], y[:rows]
    with RoutingRecorder() as recorder:
        fit.model(x)
    if not recorder.draws:
        return None
    served = assignments_of(fit.model, x, sample=fit.options.sample)
    return RoutingView(
        x,
        y,
        [fit.task.group_names[group] for group in fit.task.groups(x, y).flatten().tolist()],
        recorder.draws,
        weights_over_layers(recorder).double().flatten().numpy(),
        [favourite(z, routing).flatten().numpy() for z, (routing, _) in zip(served, recorder.draws.values())],
    )
