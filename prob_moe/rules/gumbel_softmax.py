"""Straight-through Gumbel-softmax: a hard draw forward, a soft one backward."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from prob_moe.distributions.noise import gumbel_noise_like
from prob_moe.distributions.support import router_choices
from prob_moe.rules.base import Routing, RoutingRule
from prob_moe.rules.losses import check_weight, load_balancing_loss
from prob_moe.rules.straight_through import StraightThroughRouting


class GumbelSoftmax(RoutingRule):
    r"""
    Every datapoint draws its expert by the Gumbel-max trick; the gradient is that of the softmax of the same noise:

    .. math:: y_i = f_e(x_i), \quad e = \arg\max_j (\phi_{ij} + G_{ij}), \qquad
        \nabla y_i = \sum_j f_j(x_i) \nabla q_{ij}, \quad q_i = \mathrm{softmax}((\phi_i + G_i)/\tau),

    with G independent Gumbel(0, 1), so :math:`e \sim \mathrm{softmax}(\phi_i)`. Serving takes the argmax of the logits.
    Where capacity drops a datapoint, there is neither output nor gradient. The backward pass needs the outputs of all
    experts: training costs a dense forward pass on top. A replay takes e from the record, and draws the noise of the
    backward pass from its law given that e won: where e came from the present router, it is the rule itself.

    **Objective:** ungated, :math:`E_{z\sim p}[L(f_z)]`. **Bias:** L is replaced by its tangent at :math:`f_e`, and the
    draw by its relaxation; a lower temperature has less of the latter, and more variance. **Exact for** quadratic L in
    the limit :math:`\tau \to 0`: all gradient then comes from ties, where the draw is either expert with equal odds,
    and the mean of both tangents is the trapezoidal rule.

    **Source:** Jang, Gu & Poole (2017), "Categorical Reparameterization with Gumbel-Softmax", section 2.2. The noise of
    a replay: Maddison, Tarlow & Minka (2014), "A* Sampling", section 3.

    :param temperature: :math:`\tau > 0`.
    :param load_balancing: weight of :func:`~prob_moe.rules.load_balancing_loss`.
    :param capacity: the most datapoints of one batch that an expert processes; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.
    :raises ValueError: if the temperature is not positive, the weight is negative, or the capacity is not as
        :class:`RoutingRule` wants it.
    """

    objective = "ungated E_z[L(f_z)]"

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        load_balancing: float = 0.0,
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature!r}")
        check_weight("load_balancing", load_balancing)
        self.temperature = temperature
        self.load_balancing = load_balancing

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> Routing:
        logits, mask = self.prepare(logits, mask)
        noise = gumbel_noise_like(logits).to(logits.dtype) if self.training else 0.0
        perturbed = logits + noise
        choices = perturbed.argmax(-1)
        loss = self.load_balancing * load_balancing_loss(logits, choices, mask)
        gate = perturbed.new_ones(choices.shape).unsqueeze(-2)
        sparse = self.to_experts(logits, mask, choices.unsqueeze(-2), gate, loss)
        if not self.training:
            return sparse
        return StraightThroughRouting(sparse, (perturbed / self.temperature).softmax(-1), loss)

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return logits.new_ones(choices.shape), None

    def replay(self, routing: Routing, logits: Tensor, mask: Tensor | None, assignment: Tensor) -> Routing:
        replayed = super().replay(routing, logits, mask, assignment)
        if not isinstance(replayed, StraightThroughRouting):
            return replayed
        perturbed = perturbed_given_winner(logits, router_choices(assignment).squeeze(-2))
        return replace(replayed, weights=(perturbed / self.temperature).softmax(-1))


def perturbed_given_winner(logits: Tensor, winner: Tensor) -> Tensor:
    r"""
    Draw :math:`\phi + G` from its law given its argmax: the largest entry is Gumbel at the logsumexp of :math:`\phi`,
    and the others are Gumbel at their own :math:`\phi_j`, truncated to what lies below.

    :param logits: :math:`\phi`, (*batch, n, k).
    :param winner: the argmax, long (*batch, n). A forbidden one wins too.
    :returns: (*batch, n, k), with the gradient of the logits at fixed G.
    """
    winner = winner.unsqueeze(-1)
    fixed = logits.detach()
    noise = gumbel_noise_like(logits).to(logits.dtype)
    largest = fixed.logsumexp(-1, keepdim=True) + noise.gather(-1, winner)
    # Below T, exp(-X) is exp(-T) plus an exponential variable, which alone is exp(-X) of the free one.
    below = -torch.logaddexp(-largest, -(fixed + noise))
    perturbed = below.scatter(-1, winner, largest)
    return perturbed + torch.where(fixed > -torch.inf, logits - fixed, 0.0)
