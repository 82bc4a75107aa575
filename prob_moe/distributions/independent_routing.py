"""Independent routing: the reference without capacity."""

import math

import torch
from torch import Tensor

from prob_moe.distributions.choices import OwnChoices
from prob_moe.distributions.draw import Draw
from prob_moe.distributions.entropy import choice_entropy
from prob_moe.distributions.enumeration import enumerate_choices
from prob_moe.distributions.noise import Generators
from prob_moe.distributions.sets import most_wanted


class IndependentRouting(OwnChoices):
    r"""
    Every datapoint draws its expert on its own: :math:`z_i \sim p_i = \mathrm{softmax}(\phi_i)`. No capacity.

    .. math:: P(Z) = \prod_i p_{i z_i}, \qquad w_i = 1.

    With ``num_selected`` = m every datapoint draws a set of m distinct experts, by conditional Poisson sampling:

    .. math::
        P(S_i) = \prod_{j \in S_i} p_{ij} / e_m(p_i), \qquad w_{ij} = p_{ij} / \pi_{ij}, \qquad
        \pi_{ij} = P(j \in S_i) = p_{ij}\, e_{m-1}(p_i \text{ without } j) / e_m(p_i).

    Cost O(nk), and O(nkm^2) for sets. The mode is the router's most probable expert, or set, of every datapoint.

    Source: Chen, Dempster & Liu (1994), "Weighted finite population sampling to maximize entropy", Biometrika 81.

    :param logits: router logits, float (*batch, n, k).
    :param num_selected: m, from 1 to k; None for one expert per datapoint in values of shape (*, n).
    :param mask: bool (*batch, n), False for padding.

    >>> _ = torch.manual_seed(0)
    >>> routing = IndependentRouting(torch.zeros(5, 3))
    >>> z = routing.sample()
    >>> routing.log_prob(z).exp() * 3**5
    tensor(1.0000)
    >>> pairs = IndependentRouting(torch.zeros(5, 3), num_selected=2)
    >>> pairs.sample().shape, pairs.importance_weights(pairs.sample())[:, 0]
    (torch.Size([2, 5]), tensor([0.5000, 0.5000]))
    """

    has_enumerate_support = True
    limited = False

    def draw(self, sample_shape: torch.Size = torch.Size(), *, generator: Generators = None) -> Draw:  # noqa: B008
        return self._chosen(self._code_padding(self._choose(torch.Size(sample_shape), generator)))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.choice_log_prob(value).sum(-1)

    def entropy(self) -> Tensor:
        return choice_entropy(self.logits, self.mask, self.num_selected).to(self._wide)

    def log_weights(self, value: Tensor) -> Tensor:
        return self._choice_log_weights(value).masked_fill(value < 0, -torch.inf)

    @property
    def weight_pareto_k(self) -> float:
        """The weights are bounded: minus infinity."""
        return -math.inf

    @property
    def mode(self) -> Tensor:
        if self.num_selected is None:
            return self._code_padding(self.logits.argmax(-1))
        return self._code_padding(most_wanted(self.logits.detach(), self.num_selected))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return enumerate_choices(self, expand)
