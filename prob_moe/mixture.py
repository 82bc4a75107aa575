"""The mixture of experts as a Pyro model."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from pyro.ops.provenance import detach_provenance
from torch import Tensor, nn

from prob_moe.distributions import AssignmentDistribution, GumbelMatching
from prob_moe.distributions.support import router_choices
from prob_moe.experts import BatchedExperts
from prob_moe.routers.losses import check_weight, load_balancing_loss


class MixtureOfExperts(PyroModule):
    r"""
    Router, assignment, experts and likelihood as one Pyro model:

    .. math::
        \phi = \mathrm{router}(x),\quad Z \sim \mathrm{assignment}(\phi, c),\quad
        y_i \sim \mathrm{likelihood}(\mathrm{expert}_{z_i}(x_i)).

    Sites: ``assignment`` (value (*, n), outside the data plate) and ``y`` in ``plate("data", n, dim=-1)``. Dropped
    datapoints and padding contribute no likelihood. Leading dimensions of ``x`` (*batch, n, d) are batches with
    a capacity each; call the model in plates for them, at dims -2 and further left.

    Train it with :class:`~prob_moe.estimators.TraceRouting_ELBO` (router objective), or with Pyro's own ELBOs on
    :func:`~prob_moe.estimators.balanced_objective`.

    :param router: module (*batch, n, d) -> logits (*batch, n, k).
    :param experts: a :class:`~prob_moe.experts.BatchedExperts`, or a module with its ``forward`` and ``dense``.
    :param likelihood: from expert outputs (*, n, out) to a Pyro distribution of batch shape (*, n).
    :param assignment: the assignment distribution, called with logits, ``capacity``,
        ``capacity_factor`` and, for padding, ``mask``.
    :param capacity: the most datapoints an expert processes per batch; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k) for a batch of n datapoints, padding not counted.
    :param baseline: Pyro's ``infer["baseline"]`` options, or a module (*batch, n, d) -> (*batch, n), trained along.
    :param load_balancing: weight of :func:`~prob_moe.routers.load_balancing_loss`, per datapoint. Under a
        procedure that balances by itself the shares of its choices hardly vary, and the loss pulls at nothing.

    >>> from prob_moe.experts import BatchedExperts
    >>> from prob_moe.estimators import TraceRouting_ELBO
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(20, 2), torch.randn(20)
    >>> mixture = MixtureOfExperts(
    ...     nn.Linear(2, 4),
    ...     BatchedExperts(4, 2, None, 1),
    ...     lambda out: pyro.distributions.Normal(out.squeeze(-1), 1.0),
    ...     capacity_factor=1.0,
    ... )
    >>> elbo = TraceRouting_ELBO()(mixture, lambda x, y: None)
    >>> elbo(x, y).backward()
    >>> mixture.router.weight.grad.shape
    torch.Size([4, 2])
    """

    experts: BatchedExperts

    def __init__(
        self,
        router: nn.Module,
        experts: BatchedExperts,
        likelihood: Callable[[Tensor], TorchDistribution],
        *,
        assignment: Callable[..., AssignmentDistribution] = GumbelMatching,
        capacity: int | None = None,
        capacity_factor: float | None = None,
        baseline: nn.Module | dict[str, Any] | None = None,
        load_balancing: float = 0.0,
    ) -> None:
        super().__init__()
        if (capacity is None) == (capacity_factor is None):
            raise ValueError(f"give one of capacity and capacity_factor, got {capacity} and {capacity_factor}")
        check_weight("load_balancing", load_balancing)
        self.router = router
        self.experts = experts
        self.likelihood = likelihood
        self.assignment = assignment
        self.capacity = capacity
        self.capacity_factor = capacity_factor
        self.baseline = baseline
        self.load_balancing = load_balancing

    def forward(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """
        :param x: datapoints, (*batch, n, d).
        :param y: observations, (*batch, n, ...), or None to draw them.
        :param mask: bool (*batch, n), False for padding.
        :returns: the observations.
        """
        routing = self.routing(x, mask)
        z = pyro.sample("assignment", routing, infer=baseline_infer(self.baseline, x))
        assignment = outside_plate(z)
        if self.load_balancing:
            choices = router_choices(detach_provenance(z).detach())
            penalty = load_balancing_loss(routing.logits, choices, mask) * x.shape[-2]
            pyro.factor("load_balancing", -self.load_balancing * penalty)
        x = x.expand(assignment.shape + x.shape[-1:])
        out = self.experts(x, assignment, capacity=routing.slots, mask=mask)
        counted = assignment >= 0 if mask is None else (assignment >= 0) & mask
        with pyro.plate("data", x.shape[-2], dim=-1):
            return pyro.sample("y", self.likelihood(out).mask(counted), obs=y)

    def routing(self, x: Tensor, mask: Tensor | None = None) -> AssignmentDistribution:
        """The assignment distribution of a batch; its batch shape leaves dimension -1 to the data plate."""
        logits = self.router(x)
        if logits.dim() > 2:
            logits = logits.unsqueeze(-3)
            mask = None if mask is None else mask.unsqueeze(-2)
        options = {} if mask is None else {"mask": mask}
        return self.assignment(logits, capacity=self.capacity, capacity_factor=self.capacity_factor, **options)

    # The model with routing summed out -------------------------------------------------------------------------------

    def log_likelihoods(self, x: Tensor, y: Tensor) -> Tensor:
        """
        Every expert on every datapoint, without sampling.

        :returns: log p(y_i | x_i, z_i = j), nats, (*batch, n, k).
        """
        likelihood = self.likelihood(self.experts.dense(x))
        return likelihood.log_prob(y.unsqueeze(y.dim() - len(likelihood.event_shape)))

    def router_objective(self, x: Tensor, y: Tensor) -> Tensor:
        r""":returns: the exact :math:`R = \sum_{ij} p_{ij} f_{ij}`, nats, (*batch)."""
        return (self.router(x).softmax(-1) * self.log_likelihoods(x, y)).sum((-2, -1))

    def marginal_log_likelihood(self, x: Tensor, y: Tensor) -> Tensor:
        r""":returns: :math:`\log \sum_j p_{ij} p(y_i | x_i, j)` of every datapoint, nats, (*batch, n)."""
        return (self.router(x).log_softmax(-1) + self.log_likelihoods(x, y)).logsumexp(-1)

    @torch.no_grad()
    def serve(self, x: Tensor, *, sample: bool = False, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """
        Outputs for serving.

        :param sample: draw the assignment; else its ``mode`` is used.
        :returns: expert outputs (*batch, n, out), and the assignment (*batch, n).
        """
        routing = self.routing(x, mask)
        assignment = outside_plate(routing.sample() if sample else routing.mode)
        return self.experts(x, assignment, capacity=routing.slots, mask=mask), assignment


def baseline_infer(baseline: nn.Module | dict[str, Any] | None, x: Tensor) -> dict[str, Any]:
    """The ``infer`` of an assignment site: Pyro's baseline options as given, or a module that predicts from x."""
    if baseline is None:
        return {}
    if isinstance(baseline, dict):
        return {"baseline": baseline}
    return {"baseline": {"nn_baseline": baseline, "nn_baseline_input": x}}


def outside_plate(z: Tensor) -> Tensor:
    """Drop the dimension that the assignment site leaves to the data plate: (*, 1, n) -> (*, n)."""
    return z.squeeze(-2) if z.dim() > 1 else z
