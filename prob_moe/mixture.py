"""The mixture of experts as a Pyro model."""

from collections.abc import Callable
from os import PathLike
from typing import Any

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.export import ExportedProgram

from prob_moe._exporting import export_mixture
from prob_moe._saving import load_module, save_module
from prob_moe.distributions import AssignmentDistribution, DependentRounding
from prob_moe.estimators.baselines import Baseline
from prob_moe.experts import BatchedExperts
from prob_moe.layer.base import RoutedExperts, Site
from prob_moe.layer.parts import (
    check_datapoints,
    check_experts,
    check_observations,
    likelihood_of,
    router_logits,
)
from prob_moe.numerics._compiled import leaves_torch
from prob_moe.padding import fill
from prob_moe.prediction import mix, most_probable


class MixtureOfExperts(RoutedExperts, PyroModule):
    r"""
    Router, assignment, experts and likelihood as one Pyro model:

    .. math::
        \phi = \mathrm{router}(x),\quad Z \sim \mathrm{assignment}(\phi, c),\quad
        y_i \sim \mathrm{likelihood}(\mathrm{expert}_{z_i}(x_i)).

    Sites: ``assignment`` (value (*, n), outside the data plate) and ``y`` in ``plate("data", n, dim=-1)``. Dropped
    datapoints and padding contribute no likelihood, and what stands in padding changes nothing. Where y is drawn, a
    dropped datapoint is processed too, by the expert that its router chose. Leading dimensions of ``x`` (*batch, n, d)
    are batches with a capacity each; call the model in plates for them, at dims -2 and further left.

    Train it with :class:`~prob_moe.estimators.TraceMixture_ELBO` (``num_selected`` = m experts per datapoint, and a
    bound on the mixture's own likelihood), :class:`~prob_moe.estimators.TraceRouting_ELBO` (router objective), or
    :class:`~prob_moe.estimators.TraceBalanced_ELBO` (balanced objective).

    :param router: module (*batch, n, d) -> logits (*batch, n, k).
    :param experts: a :class:`~prob_moe.experts.BatchedExperts`, or a module with its ``forward`` and ``dense``.
    :param likelihood: from expert outputs (*, n, out) to a Pyro distribution of batch shape (*, n).
    :param assignment: the assignment distribution, called with logits, ``capacity``,
        ``capacity_factor`` and, for padding, ``mask``.
    :param capacity: the most datapoints an expert processes per batch; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k) for a batch of n datapoints, padding not counted.
        With ``num_selected`` a procedure that needs no limit may have neither.
    :param num_selected: m, the distinct experts of every datapoint, from 1 to k: the mixture bound, to be trained with
        :class:`~prob_moe.estimators.TraceMixture_ELBO`, capacity = ceil(capacity_factor * n * m / k); None for one
        expert per datapoint.
    :param baseline: a :class:`~prob_moe.estimators.Baseline`, Pyro's ``infer["baseline"]`` options, or a module
        (*batch, n, d) -> (*batch, n), trained along.
    :param load_balancing: weight of :func:`~prob_moe.rules.load_balancing_loss` on expected shares. The site
        ``load_balancing`` is minus the weight times the number of present datapoints times the loss.
    :raises ValueError: on arguments of the wrong kind; when called, on a router whose width is not k, on no datapoints,
        or on observations whose shape does not fit.

    >>> import torch
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
    >>> elbo = TraceRouting_ELBO()(mixture, None)
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
        assignment: Callable[..., AssignmentDistribution] = DependentRounding,
        capacity: int | None = None,
        capacity_factor: float | None = None,
        num_selected: int | None = None,
        baseline: Baseline | nn.Module | dict[str, Any] | None = None,
        load_balancing: float = 0.0,
    ) -> None:
        if capacity is None and capacity_factor is None and num_selected is None:
            raise ValueError("give one of capacity and capacity_factor, got None and None")
        check_experts(experts)
        super().__init__(
            router,
            experts,
            assignment,
            capacity=capacity,
            capacity_factor=capacity_factor,
            num_selected=num_selected,
            baseline=baseline,
            load_balancing=load_balancing,
        )
        self.likelihood = likelihood

    @leaves_torch  # effect handlers are not for a compiler; a router and experts that are compiled stay so
    def forward(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """
        :param x: datapoints, (*batch, n, d).
        :param y: observations, (*batch, n, ...), or None to draw them.
        :param mask: bool, broadcastable to (*batch, n), False for padding. Draws of y in padding mean nothing.
        :returns: the observations.
        """
        x, mask = check_datapoints(x, mask)
        site = self.site("assignment", x, router_logits(self.router, x, self.experts), mask)
        if self.load_balancing:
            pyro.factor("load_balancing", -self.load_balancing_penalty(site.law))
        likelihood: TorchDistribution
        if self.num_selected is None:
            likelihood = self._likelihood_of_one(x, site, mask, everybody=y is None)
        elif y is None:
            likelihood = self.predict(x, mask=mask)
        else:
            out = self.process(x, site.assignment, site.law, mask)
            likelihood = self.selected_mixture(site, out, self.likelihood)
        if y is not None:
            check_observations(y, likelihood.event_shape, x.shape[-2])
            y = fill(y, mask, likelihood.event_dim)
        with pyro.plate("data", x.shape[-2], dim=-1):
            return pyro.sample("y", likelihood, obs=y)

    def _likelihood_of_one(self, x: Tensor, site: Site, mask: Tensor | None, *, everybody: bool) -> TorchDistribution:
        out = self.process(x, site.assignment, site.law, mask, everybody=everybody)
        processed = site.assignment >= 0
        return likelihood_of(out, self.likelihood).mask(processed if mask is None else processed & mask)

    def routing(self, x: Tensor, mask: Tensor | None = None) -> AssignmentDistribution:
        """The assignment distribution of a batch; its batch shape leaves dimension -1 to the data plate."""
        x, mask = check_datapoints(x, mask)
        return self.law_beside_plate(router_logits(self.router, x, self.experts), mask)

    def load_balancing_penalty(self, routing: AssignmentDistribution) -> Tensor:
        """:returns: weight times present datapoints times the loss on expected shares, of ``routing.batch_shape``."""
        present = routing.num_datapoints if routing.mask is None else routing.mask.sum(-1)
        return present * self.balance(routing.logits, routing.mask)

    # The model with routing summed out -------------------------------------------------------------------------------

    def log_likelihoods(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """
        Every expert on every datapoint, without sampling.

        :returns: log p(y_i | x_i, z_i = j), nats, (*batch, n, k); 0 for padding.
        """
        x, mask = check_datapoints(x, mask)
        likelihood = likelihood_of(self.experts.dense(x), self.likelihood)
        check_observations(y, likelihood.event_shape, x.shape[-2])
        y = fill(y, mask, likelihood.event_dim)
        log_likelihoods = likelihood.log_prob(y.unsqueeze(y.dim() - likelihood.event_dim))
        return log_likelihoods if mask is None else log_likelihoods.masked_fill(~mask.unsqueeze(-1), 0.0)

    def router_objective(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        r""":returns: the exact :math:`R = \sum_{ij} p_{ij} f_{ij}` over present datapoints, nats, (*batch)."""
        return (self._log_p(x, mask).exp() * self.log_likelihoods(x, y, mask)).sum((-2, -1))

    def marginal_log_likelihood(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        r""":returns: :math:`\log \sum_j p_{ij} p(y_i | x_i, j)`, nats, (*batch, n); 0 for padding."""
        marginal = (self._log_p(x, mask) + self.log_likelihoods(x, y, mask)).logsumexp(-1)
        return marginal if mask is None else marginal.masked_fill(~mask, 0.0)

    def predict(self, x: Tensor, *, num_selected: int | None = None, mask: Tensor | None = None) -> TorchDistribution:
        """
        The law of y given x: every datapoint by itself, without capacity, so nobody is dropped and a batch says of a
        datapoint what it says alone.

        :param num_selected: mix the m most probable experts only, with renormalised probabilities; None: all of them.
        :param mask: bool, broadcastable to (*batch, n), False for padding, for which the law means nothing.
        :returns: batch shape (*batch, n): a ``MixtureSameFamily`` of the likelihood; for classes a ``Categorical`` with
            the mixture's probabilities.
        :raises ValueError: if m is no int from 1 to k.

        >>> import torch
        >>> from prob_moe.experts import BatchedExperts
        >>> experts = BatchedExperts(4, 2, None, 1)
        >>> mixture = MixtureOfExperts(
        ...     nn.Linear(2, 4), experts, lambda out: pyro.distributions.Normal(out.squeeze(-1), 1.0), capacity=5
        ... )
        >>> mixture.predict(torch.randn(20, 2), num_selected=2).mean.shape
        torch.Size([20])
        """
        log_p, out = self.weighted_outputs(x, num_selected=num_selected, mask=mask)
        return mix(log_p, likelihood_of(out, self.likelihood))

    def weighted_outputs(
        self, x: Tensor, *, num_selected: int | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """
        What :meth:`predict` mixes.

        :returns: log-probabilities (*batch, n, m) of the selected experts, and their outputs (*batch, n, m, out).
        """
        x, mask = check_datapoints(x, mask)
        return most_probable(self._log_p(x, mask), self.experts.dense(x), num_selected)

    def responsibilities(self, x: Tensor, y: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """
        :returns: probability of every expert for every datapoint, (*batch, n, k): the router's, or given y the
            posterior's; 0 for padding.
        """
        log_p = self._log_p(x, mask)
        if y is not None:
            log_p = log_p + self.log_likelihoods(x, y, mask)
        probabilities = log_p.softmax(-1)
        return probabilities if mask is None else probabilities.masked_fill(~mask.unsqueeze(-1), 0.0)

    # Files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | PathLike[str]) -> None:
        """
        Write parameters and buffers into one file, in the format of safetensors. The architecture is not in it: make a
        mixture like this one and fill it by :meth:`load_weights`.
        """
        save_module(self, path)

    def load_weights(self, path: str | PathLike[str]) -> "MixtureOfExperts":
        """
        Fill this mixture from a file that :meth:`save` wrote, whole or not at all.

        :returns: the mixture itself.
        :raises ValueError: it is no such file, of another version, or its names, shapes or dtypes are not those of this
            mixture; all that differ are named.
        """
        load_module(self, path)
        return self

    def export(self, x: Tensor, *, num_selected: int | None = None) -> ExportedProgram:
        """
        What :meth:`predict` mixes, as a graph of tensors by :func:`torch.export.export`; :func:`torch.export.save`
        writes it to a file that runs without this library.

        :param x: an example, (n, d), with n of at least 2; the graph takes any n.
        :param num_selected: as in :meth:`predict`.
        :returns: from x to log-weights (n, m), and means and scales (standard deviations) of the experts, each
            (n, m, ...).
        :raises ValueError: the likelihood has no mean and scale, as one of classes, or the example has another shape.
        """
        return export_mixture(self, x, num_selected)

    def _log_p(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Router log-probabilities, (*batch, n, k)."""
        x, _ = check_datapoints(x, mask)
        return router_logits(self.router, x, self.experts).log_softmax(-1)
