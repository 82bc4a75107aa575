"""Switch: the router of most systems, top-1 with a gate and two auxiliary losses."""

from torch import Tensor

from prob_moe.rules.base import RoutingRule, SparseRouting
from prob_moe.rules.losses import check_weight, load_balancing_loss, z_loss


class Switch(RoutingRule):
    r"""
    Every datapoint goes to its most probable expert, gated by that probability:

    .. math:: y_i = p_{i e}\, f_e(x_i), \qquad e = \arg\max_j p_{ij}, \quad p_i = \mathrm{softmax}(\phi_i).

    An expert processes the first ``capacity`` datapoints that chose it, in their order, and drops the rest (output 0).
    The loss is ``load_balancing`` times :func:`~prob_moe.rules.load_balancing_loss`, whose loads are the choices,
    dropped ones included, plus ``z_loss`` times :func:`~prob_moe.rules.z_loss`. Training and serving agree.

    **Objective:** its own deterministic model, the loss L of this y. Gradient reaches the router through the gate of
    the chosen expert. **Exact for** L(y) almost everywhere, the argmax being piecewise constant: the change of choice
    itself is never felt. **Bias** for the gated objective :math:`E_{z\sim p}[L(p_z f_z)]`: neither the experts that are
    not chosen nor the probability of choosing enter. Nothing is drawn, so there is no variance.

    **Source:** Fedus, Zoph & Shazeer (2021), "Switch Transformers", eqs. 1-6; z-loss and its weight: Zoph et al.
    (2022), "ST-MoE", eq. 5.

    :param load_balancing: weight of the load-balancing loss.
    :param z_loss: weight of the z-loss.
    :param capacity: the most datapoints of one batch that an expert processes; or
    :param capacity_factor: capacity = ceil(capacity_factor * n / k). Without either there is no limit.
    :raises ValueError: if a weight is negative, or the capacity is not as :class:`RoutingRule` wants it.

    >>> import torch
    >>> routing = Switch(capacity=1)(torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> routing.assignment
    tensor([[ 0, -1,  1]])
    """

    objective = "deterministic L(p_e f_e) at e = argmax p"

    def __init__(
        self,
        *,
        load_balancing: float = 1e-2,
        z_loss: float = 1e-3,
        capacity: int | None = None,
        capacity_factor: float | None = None,
    ) -> None:
        super().__init__(capacity=capacity, capacity_factor=capacity_factor)
        check_weight("load_balancing", load_balancing)
        check_weight("z_loss", z_loss)
        self.load_balancing = load_balancing
        self.z_loss = z_loss

    def forward(self, logits: Tensor, *, mask: Tensor | None = None) -> SparseRouting:
        logits, mask = self.prepare(logits, mask)
        choices = self.choose(logits)
        balance = load_balancing_loss(logits, choices, mask)
        loss = self.load_balancing * balance + self.z_loss * z_loss(logits, mask)
        return self.to_experts(logits, mask, choices.unsqueeze(-2), self.gate(logits, choices).unsqueeze(-2), loss)

    def gates(self, logits: Tensor, choices: Tensor) -> tuple[Tensor, None]:
        return logits.softmax(-1).mT.gather(-2, choices), None

    def choose(self, logits: Tensor) -> Tensor:
        """:returns: the expert of every datapoint, long (*batch, n)."""
        return logits.argmax(-1)

    def gate(self, logits: Tensor, choices: Tensor) -> Tensor:
        """:returns: the gate of given choices, (*batch, n)."""
        return logits.softmax(-1).gather(-1, choices.unsqueeze(-1)).squeeze(-1)
