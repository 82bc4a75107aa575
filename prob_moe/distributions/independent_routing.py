"""Independent routing: the reference without capacity."""

import math

import torch
from torch import Tensor

from prob_moe.distributions.base import AssignmentDistribution
from prob_moe.distributions.draw import Draw
from prob_moe.distributions.entropy import choice_entropy
from prob_moe.distributions.enumeration import enumerate_choices
from prob_moe.distributions.noise import Generators


class IndependentRouting(AssignmentDistribution):
    r"""
    Every datapoint draws its expert on its own: :math:`z_i \sim p_i = \mathrm{softmax}(\phi_i)`. No capacity.

    .. math:: P(Z) = \prod_i p_{i z_i}, \qquad w_i = 1.

    Cost O(nk). The mode is the router's most probable expert of every datapoint.

    :param logits: router logits, float (*batch, n, k).
    :param mask: bool (*batch, n), False for padding.

    >>> _ = torch.manual_seed(0)
    >>> routing = IndependentRouting(torch.zeros(5, 3))
    >>> z = routing.sample()
    >>> routing.log_prob(z).exp() * 3**5
    tensor(1.0000)
    """

    has_enumerate_support = True
    limited = False

    def draw(self, sample_shape: torch.Size = torch.Size(), *, generator: Generators = None) -> Draw:  # noqa: B008
        value = self._code_padding(self._sample_router(torch.Size(sample_shape), generator))
        return self._drawn(value, self.log_weights(value))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.router_log_prob(value).sum(-1)

    def entropy(self) -> Tensor:
        return choice_entropy(self.logits, self.mask).to(self._wide)

    def log_weights(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value, dtype=self.logits.dtype).masked_fill(value < 0, -torch.inf)

    @property
    def weight_pareto_k(self) -> float:
        """The weights are bounded: minus infinity."""
        return -math.inf

    @property
    def mode(self) -> Tensor:
        return self._code_padding(self.logits.argmax(-1))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return enumerate_choices(self, expand)
