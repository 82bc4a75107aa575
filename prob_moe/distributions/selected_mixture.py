"""The likelihood of a datapoint under the experts that were selected for it."""

from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


def mixture_bound(
    log_weights: Tensor, router_log_prob: Tensor, log_likelihood: Tensor, keep_probability: Tensor | None = None
) -> Tensor:
    r"""
    The bound of every datapoint, with value and gradient as :class:`SelectedMixture` states them, on plain tensors.

    :param log_weights: log w, nats (*batch, m, n), without gradient; -inf where an expert does not process i.
    :param router_log_prob: log p, nats (*batch, m, n), with the router's gradient.
    :param log_likelihood: :math:`f_{ij} = \log p(y_i | j)`, nats (*batch, m, n); not heeded where the weight is 0.
    :param keep_probability: :math:`\kappa`, (*batch, n), without gradient; None for 1.
    :returns: nats, (*batch, n); 0 without gradient where no expert processes the datapoint.

    >>> p, f = torch.tensor([[0.25], [0.75]]), torch.tensor([[0.0], [-1.0]])  # both of two experts, one datapoint
    >>> mixture_bound(p.log(), p.log(), f).exp()
    tensor([0.5259])
    """
    processed = log_weights > -torch.inf
    kept = processed.any(-2)
    log_likelihood = torch.where(processed, log_likelihood, torch.zeros_like(log_likelihood))
    terms = log_weights + (router_log_prob - router_log_prob.detach()) + log_likelihood
    # Nobody kept would be a logsumexp of nothing, whose gradient is NaN.
    terms = torch.where(processed, terms, torch.full_like(terms, -torch.inf))
    terms = torch.where(kept.unsqueeze(-2), terms, torch.zeros_like(terms))
    bound = terms.logsumexp(-2)
    if keep_probability is not None:
        kappa = torch.where(kept, keep_probability, torch.ones_like(keep_probability))
        bound = (kappa.log() + bound) / kappa
    return torch.where(kept, bound, torch.zeros_like(bound))


class SelectedMixture(TorchDistribution):
    r"""
    An unbiased estimate of a lower bound on a mixture's log-likelihood, from m of its k components:

    .. math::
        \log\mathrm{prob}(y_i) = \frac{1}{\kappa_i} \log\Big(\kappa_i \sum_{j \in S_i} w_{ij}\, p(y_i \mid j)\Big),
        \qquad w_{ij} = p_{ij} / \pi_{ij},

    where the sum is over the selected experts that process the datapoint, and 0 where there is none. With inclusion
    probabilities :math:`\pi_{ij}` and :math:`\kappa_i` the probability that the datapoint keeps an expert, its
    expectation is at most :math:`\log \sum_j p_{ij}\, p(y_i \mid j)`, by Jensen's inequality twice; at m = k, where all
    weights are p, it is equal. Without :math:`\kappa` it would be no bound, and reward dropping.

    The procedure that selects is held fixed: the gradient is
    :math:`\frac{1}{\kappa_i} \sum_j \omega_{ij} \nabla(\log p_{ij} + \log p(y_i \mid j))` over the selected, with the
    responsibilities :math:`\omega_i = \mathrm{softmax}_j(\log w_{ij} + \log p(y_i \mid j))`. No score function.

    It scores observations only: what selects knows nothing of y, so draws come from the mixture itself
    (:meth:`~prob_moe.mixture.MixtureOfExperts.predict`).

    Source: importance-weighted bounds, Burda, Grosse & Salakhutdinov (2016); the gradient is that of reweighted
    wake-sleep, Bornschein & Bengio (2015).

    :param log_weights: log of the importance weights w of the selected experts, nats (*batch, m, n); -inf where
        dropped, and for padding.
    :param router_log_prob: log p of the selected experts, nats (*batch, m, n), with the router's gradient.
    :param components: the likelihoods of the selected experts, batch shape (*batch, m, n).
    :param keep_probability: :math:`\kappa`, (*batch, n); 1 if it is not given.
    :raises ValueError: if the shapes do not fit.

    >>> import pyro.distributions as dist
    >>> p = torch.tensor([[0.25], [0.75]])  # two of two experts, one datapoint
    >>> y = SelectedMixture(p.log(), p.log(), dist.Normal(torch.tensor([[0.0], [1.0]]), 1.0))
    >>> torch.allclose(y.log_prob(torch.zeros(1)).exp(), 0.3989 * (0.25 + 0.75 * torch.tensor(-0.5).exp()), atol=1e-4)
    True
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch's form)
    has_rsample = False

    def __init__(
        self,
        log_weights: Tensor,
        router_log_prob: Tensor,
        components: TorchDistribution,
        *,
        keep_probability: Tensor | None = None,
    ) -> None:
        shape = components.batch_shape
        for name, value, wanted in (
            ("log_weights", log_weights, shape),
            ("router_log_prob", router_log_prob, shape),
            ("keep_probability", keep_probability, shape[:-2] + shape[-1:]),
        ):
            if value is not None and value.shape != wanted:
                raise ValueError(
                    f"{name} must have shape {tuple(wanted)} for components of batch shape (*batch, m, n) = "
                    f"{tuple(shape)}, got {tuple(value.shape)}"
                )
        self.log_weights = log_weights.detach()
        self.router_log_prob = router_log_prob
        self.components = components
        self.keep_probability = None if keep_probability is None else keep_probability.detach()
        super().__init__(shape[:-2] + shape[-1:], components.event_shape, validate_args=False)

    @property
    def num_selected(self) -> int:
        """m"""
        return self.components.batch_shape[-2]

    @property
    def processed(self) -> Tensor:
        """Which selected experts process their datapoint, bool (*batch, m, n)."""
        return self.log_weights > -torch.inf

    @property
    def support(self) -> constraints.Constraint:
        return self.components.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> "SelectedMixture":
        *lead, n = batch_shape
        shape = torch.Size((*lead, self.num_selected, n))
        kappa = self.keep_probability
        return SelectedMixture(
            self.log_weights.expand(shape),
            self.router_log_prob.expand(shape),
            self.components.expand(shape),
            keep_probability=None if kappa is None else kappa.expand(torch.Size(batch_shape)),
        )

    def selected_log_prob(self, value: Tensor) -> Tensor:
        """:returns: log p(y_i | j) of every selected expert, nats (*batch, m, n); 0 where it does not process i."""
        log_prob = self.components.log_prob(value.unsqueeze(-2 - self.event_dim))
        return torch.where(self.processed, log_prob, torch.zeros_like(log_prob))

    def log_prob(self, value: Tensor) -> Tensor:
        """:returns: nats, (*batch, n); the value of the bound, with the gradient that the class states."""
        f = self.selected_log_prob(value)
        return mixture_bound(self.log_weights, self.router_log_prob, f, self.keep_probability)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        raise NotImplementedError(
            "SelectedMixture scores observations only; draw y from the mixture itself, as MixtureOfExperts does "
            "without y, or from its predict(x)"
        )
