"""SparseMixer: gradients of a sampled gate that stand in for the missing score part by an ODE solver's steps."""

from typing import ClassVar

import torch
from torch import Tensor

from prob_moe.distributions.noise import gumbel_noise_like, uniform_noise
from prob_moe.rules.base import RoutingRule, SparseRouting
from prob_moe.rules.losses import check_weight, load_balancing_loss


class SparseMixer(RoutingRule):
    r"""
    SparseMixer, first version: a sampled expert, whose gate is at times halved in the forward pass.

    .. math:: y_i = m_i\, p_{i D} f_D(x_i), \qquad D \sim p_i,

    where p is the softmax of the logits inside a window below the largest one,
    :math:`\{j : \max\phi_i - \phi_{ij} \le 2\varepsilon \max(|\phi_{ij}|, \max\phi_i)\}`, and 0 outside;
    :math:`m_i = 1` where D is the argmax, otherwise 1 or 1/2 with equal probability. Serving takes the argmax and
    m = 1. The loss is ``load_balancing`` times :func:`~prob_moe.rules.load_balancing_loss` of the window's softmax.

    The gradient g with respect to the gate :math:`m p_D` goes on to :math:`p_D` as 2g, without m.

    A replay takes D from the record, p and the argmax from the present logits, and draws m anew, as the average below
    wants it; an expert outside of the present window has p = 0.

    **Objective:** gated, :math:`E_{z\sim p}[L(p_z f_z)]`, p the window's softmax. Averaged over m, the doubled gradient
    is the gate part, :math:`\langle L'(p f), p f \rangle`, plus the midpoint rule for the score part,
    :math:`L(p f) - L(0) \approx \langle L'(p f / 2), p f \rangle`. **Exact for** quadratic L, but where D is the
    argmax: there m = 1, and the score part's slope is taken at p f. **Bias:** the argmax; terms of L beyond the second
    order; and, for the softmax of all logits, the window.

    **Source:** Liu, Gao & Chen (2023), "Sparse Backpropagation for MoE Training", and ``sparsemixer.py`` of
    microsoft/SparseMixer. Its learned scale of the output, omega, is left to the layer.

    :param epsilon: half the relative width of the window, >= 0; ``math.inf`` for none.
    :param load_balancing: weight of the load-balancing loss.
    :param capacity: the most datapoints of one batch that an expert processes; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.
    :raises ValueError: if epsilon or a weight is negative, or the capacity is not as
        :class:`RoutingRule` wants it.
    """

    objective = "gated E_z[L(p_z f_z)]"

    #: m of a short step
    short: ClassVar[float] = 1 / 2
    #: how often the step is full (m = 1) where the argmax was not drawn
    full_probability: ClassVar[float] = 1 / 2
    #: what multiplies the gradient of the gate on its way to p_D
    slope: ClassVar[float] = 2.0

    def __init__(
        self,
        *,
        epsilon: float = 0.1,
        load_balancing: float = 1e-2,
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        if not epsilon >= 0:
            raise ValueError(f"epsilon must be a relative width >= 0, got {epsilon!r}; math.inf opens the window")
        check_weight("load_balancing", load_balancing)
        self.epsilon = epsilon
        self.load_balancing = load_balancing

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        logits, mask = self.prepare(logits, mask)
        windowed = self.window(logits)
        best = windowed.argmax(-1)
        choices = (windowed.detach() + gumbel_noise_like(windowed)).argmax(-1) if self.training else best
        gate = self.gate(windowed, choices, self.full_steps(choices, best))
        loss = self.load_balancing * load_balancing_loss(windowed, choices, mask)
        return self.to_experts(logits, mask, choices.unsqueeze(-2), gate.unsqueeze(-2), loss)

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        windowed = self.window(logits)
        best = windowed.argmax(-1)
        gates = [self.gate(windowed, chosen, self.full_steps(chosen, best)) for chosen in choices.unbind(-2)]
        return torch.stack(gates, -2), None

    def full_steps(self, choices: Tensor, best: Tensor) -> Tensor:
        """:returns: whether m = 1, bool (*batch, n): drawn in training, but where the argmax is chosen."""
        if not self.training:
            return torch.ones_like(best, dtype=torch.bool)
        uniform = uniform_noise(best.shape, best.device, dtype=torch.float32)
        return (choices == best) | (uniform < self.full_probability)

    def window(self, logits: Tensor) -> Tensor:
        """:returns: the logits, minus infinity for experts outside the window."""
        largest = logits.amax(-1, keepdim=True)
        outside = (largest - logits) > 2 * self.epsilon * logits.abs().maximum(largest)
        return logits.masked_fill(outside, -torch.inf)

    def gate(self, windowed: Tensor, choices: Tensor, full: Tensor) -> Tensor:
        """
        The gate m p_D of given draws, with the gradient described above.

        :param windowed: logits inside the window, (*batch, n, k).
        :param choices: D, long (*batch, n).
        :param full: whether m = 1, bool (*batch, n).
        :returns: (*batch, n).
        """
        p = windowed.softmax(-1).gather(-1, choices.unsqueeze(-1)).squeeze(-1)
        # p - p.detach() is 0 with the gradient of p.
        return torch.where(full, p.detach(), self.short * p.detach()) + self.slope * (p - p.detach())


class SparseMixerV2(SparseMixer):
    r"""
    SparseMixer, second version: as :class:`SparseMixer`, but for m and the gradient.

    m = 1 where D is the argmax, and otherwise 1 with probability 1/4, else 1/3. The gradient g with respect to the gate
    :math:`m p_D` goes to the logits as :math:`g\, p_D (\mathbb 1[j = D] - p_j)`, that is to :math:`p_D` without m.

    **Objective:** gated, :math:`E_{z\sim p}[L(p_z f_z)]`, in intention. **Exact for** its score part,
    :math:`\sum_j L(p_j f_j)\nabla p_j`, alone: averaged over m it is Heun's third-order rule, exact for cubic L but
    where D is the argmax. **Bias:** the gate part, :math:`\sum_j p_j \langle L'(p_j f_j), f_j\rangle \nabla p_j`, is
    missing; the argmax and the window as in the first version.

    **Source:** Liu et al. (2024), "GRIN: GRadient-INformed MoE", and ``sparsemixer_v2.py`` of microsoft/SparseMixer,
    whose 1/3 is 0.3333.

    Parameters as :class:`SparseMixer`.
    """

    short = 1 / 3
    full_probability = 1 / 4
    slope = 1.0
